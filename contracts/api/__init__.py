"""What a gateway answers: one struct for each JSON object, shared by the code that writes it and the code that reads
it."""
