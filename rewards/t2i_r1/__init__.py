"""T2I-R1's own reward rules, defects included, for comparing with its published numbers."""
