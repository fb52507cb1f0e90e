"""Generating images and texts with a trained transformer."""
