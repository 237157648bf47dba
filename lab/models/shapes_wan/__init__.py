"""Video in Wan's structure: a transformer with cross-attention, UMT5's encoder and an autoencoder causal in time."""
