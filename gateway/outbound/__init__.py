"""Connections to addresses that callers name: receivers of webhooks, and hosts of images."""
