"""`warmlane doctor`."""
