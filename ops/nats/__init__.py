"""NATS: connection, watches, access, provisioning, the server program."""
