"""Measuring speed and memory, each competitor in a process of its own."""
