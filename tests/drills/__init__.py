"""What `make` runs beside the tests: chaos, overload, failover, soak and others."""
