"""Rewards: pictures in, scores out."""
