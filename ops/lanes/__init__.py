"""Lanes wanted and lanes granted: plan, supervisor, providers, recovery, quota."""
