"""Rollout: prompts in; semantic CoTs, image tokens and pictures out."""
