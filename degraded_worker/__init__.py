"""The degraded worker: every model on one card, one at a time."""
