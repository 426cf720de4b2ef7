"""OpenAI's video API and ours: what a request means, how a task is shown, how an error is said. Pure (ADR 0046)."""
