"""Writing tokens with a trained transformer."""
