"""What tests build on: servers, systems, workers, records."""
