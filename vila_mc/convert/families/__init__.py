"""The config.json of each model family, both ways, and the rows of its name table."""
