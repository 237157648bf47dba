"""Sampling in pure torch: noise laws, generators of steps, guidance and masks. Knows nothing of the host."""
