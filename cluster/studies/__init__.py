"""Studies: questions about the algorithm, answered by runs that differ in one thing. See `cluster.study`."""
