"""What a gateway answers: one struct for each JSON object, for those who write it and for those who read it."""
