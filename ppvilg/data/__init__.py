"""Raw pairs of pictures and captions, from whatever they are stored in."""
