"""What `make` runs beside the tests: chaos, overload, failover, soak and others."""

from tests.kit import reaper

reaper.watch()
