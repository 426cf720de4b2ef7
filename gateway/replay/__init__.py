"""`warmlane replay`: a recorded day, by another policy."""
