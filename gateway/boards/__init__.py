"""What the gateway knows, kept by watches of the buckets."""
