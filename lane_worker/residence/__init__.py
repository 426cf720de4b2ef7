"""What is on a slot: released, proven gone, loaded."""
