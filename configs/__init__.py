"""Configuration of a run: the schema, its loader, and the shipped YAML files.

Importing this package imports neither torch, vllm nor ray.
"""
