"""Unit tests are pure: no server, no process, no clock."""

from hypothesis import settings

# a deadline would fail a test when the machine is busy
settings.register_profile("warmlane", deadline=None)
settings.load_profile("warmlane")
