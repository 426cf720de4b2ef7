"""Published checkpoints: which files they are, which key is which parameter, what a prepared folder holds. No torch."""
