"""The emoji data set: built once from free npm packages by tools/build_emoji.py, shipped in data/emoji."""
