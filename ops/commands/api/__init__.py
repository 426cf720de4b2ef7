"""The HTTP API, as the commands use it."""
