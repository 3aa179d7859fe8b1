"""What `python -m cluster.bench` measures; one module a benchmark, each with a function `measure`."""
