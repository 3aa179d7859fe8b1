"""What a config takes from the machine that launches it, and what it shows there: secrets and paths."""
