"""Attention editing in pure torch: edits of probabilities, addressed by site and sigma. Knows nothing of the host."""
