"""How a request's path is read before a route is found for it."""


def routed(path: str) -> str:
    """*path* as Litestar's router reads it: without the slashes at its end. Pure."""
    return path.rstrip("/") or "/"
