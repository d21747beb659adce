"""ITEm: product embeddings from words and pictures."""
