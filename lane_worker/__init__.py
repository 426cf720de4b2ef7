"""Lane workers: one model, kept warm on a card of its own. `runtime` is shared with the degraded worker."""
