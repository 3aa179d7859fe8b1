"""Learner: trajectories in, new weights out."""
