"""`make bench`: what Warmlane costs beside the least that could do the same, and beside other tools that people use.

No module of Warmlane imports this package. The extra `bench` installs what the peers need.
"""
