"""What `make` runs in addition to the tests: chaos, overload, failover, soak and others."""

from tests.kit import reaper

reaper.watch()
