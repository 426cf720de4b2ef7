"""What the API promises to its clients (docs/use/versions.md), as data, and what breaks it."""
