"""This machine: memory, cards, processes, placement, certificates, weights."""
