"""A rehearsal: a config run end to end in minutes, with random weights, few layers and nothing downloaded."""
