"""Measuring speed and memory, always of several things in turn."""
