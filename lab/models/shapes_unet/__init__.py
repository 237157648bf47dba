"""The text-to-image model: a checkpoint of SD1.x's structure."""
