"""`warmlane replay`: a recorded day under another policy."""
