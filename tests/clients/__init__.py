"""Programs that use clients which were generated from `/openapi.json`: each is run as its users would run it."""
