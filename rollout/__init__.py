"""Rollout: semantic CoTs, image tokens and pictures are sampled from the policy, for each prompt a group of them."""
