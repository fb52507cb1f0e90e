"""Raw pairs of images and captions, from whatever they are stored in."""
