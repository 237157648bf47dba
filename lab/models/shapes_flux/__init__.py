"""Rectified flow in Flux's structure: a joint transformer and a text encoder of T5's structure."""
