"""The learner: an optimizer step on each batch of scored trajectories with DeepSpeed, and the export of weights."""
