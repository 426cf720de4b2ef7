"""Tests of the client's package without its I/O: flows are told what came of their effects."""
