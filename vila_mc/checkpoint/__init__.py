"""Training checkpoints, and conversion to and from Hugging Face. May import model and data."""
