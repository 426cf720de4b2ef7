"""Translates between OpenAI's video API and ours: requests, tasks and errors. Pure (ADR 0046)."""
