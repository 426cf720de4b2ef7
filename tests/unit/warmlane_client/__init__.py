"""Tests of the client's package without its I/O: flows get the outcomes of their effects."""
