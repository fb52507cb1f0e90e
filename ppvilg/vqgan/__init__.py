"""The image tokenizer (VQGAN): network, codebook, losses."""
