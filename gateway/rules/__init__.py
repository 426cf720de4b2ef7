"""Decisions of the gateway, pure: no clock, no I/O, no logging."""
