"""Cluster: the only package that knows Ray and Redis; it joins rollout, rewards and learner into a run."""
