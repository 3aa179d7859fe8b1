"""A run from its first check to its summary: what the launcher drives."""
