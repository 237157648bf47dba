"""The LoRA, which gives every object a white core."""
