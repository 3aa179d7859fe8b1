"""The model's forward pass on a CPU, where the overhead of calls counts: kernel by kernel, and nothing twice."""
