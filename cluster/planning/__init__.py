"""What a run will need and how long it will take, by arithmetic on the config and the model's config.json."""
