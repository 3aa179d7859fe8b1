"""Janus inside a vLLM worker: the model of two streams, its layers, and the sampler in the place of vLLM's own."""
