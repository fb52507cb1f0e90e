"""What ppvilg's speed is compared with: the same transformer in PyTorch, and PaddleNLP's ARTIST."""
