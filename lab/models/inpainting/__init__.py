"""The inpainting model."""
