"""The effects of a decision: admission, holding, sweeping, fallbacks."""
