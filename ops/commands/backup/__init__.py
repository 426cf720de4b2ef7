"""`warmlane backup` and `warmlane restore`."""
