"""What Warmlane is measured against: each module is one HTTP service, started as `python -m tests.bench.peers.NAME`.

The only modules of `ops` that import an HTTP framework. What they share with the gateway is how uvicorn is set up.
"""
