"""uvicorn's HTTP server, with the bounds that Warmlane puts on connections."""
