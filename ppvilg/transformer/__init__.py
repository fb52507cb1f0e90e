"""The unified transformer."""
