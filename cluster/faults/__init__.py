"""The chaos harness: trains while it kills the run's processes. See `cluster.chaos`."""
