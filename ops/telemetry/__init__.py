"""Metrics, spans, logs, and their export."""
