"""What Warmlane is measured against: each module is one HTTP service, started as `python -m tests.bench.peers.NAME`.

With the gateway they share only the way in which uvicorn is set up.
"""
