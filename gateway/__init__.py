"""The HTTP side: validates, routes, publishes, answers. Never imports a worker, never torch."""
