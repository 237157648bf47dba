"""The hypernetwork, which gives every object a white core."""
