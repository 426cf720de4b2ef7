"""A request for a generation: its bytes, what is wrong with it, and its parameters once it is accepted. Pure."""
