"""Tests: `unit` in seconds, `integration` with the real vLLM, Ray, DeepSpeed and Redis, `gpu` where there is one."""
