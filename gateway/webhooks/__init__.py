"""Webhooks: deliveries are made from the records of tasks, and sent by the one gateway that leads (ADR 0044)."""
