"""Unit tests are pure: no server, no process, no clock."""

from hypothesis import settings

# a deadline would make a test fail because the machine is busy
settings.register_profile("warmlane", deadline=None)
settings.load_profile("warmlane")
