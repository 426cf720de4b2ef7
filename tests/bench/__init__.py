"""`make bench`: what Warmlane costs beside the least that could do the same, and beside what else people use.

Nothing of Warmlane imports this package; the extra `bench` brings what the peers need.
"""
