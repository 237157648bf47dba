"""A tiny text-to-image model of coloured shapes, and the pictures it was trained on with their ground truth."""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("shapes.safetensors")
CLIP_TEXT = Path(__file__).with_name("shapes_clip_text.safetensors")
CLIP_VISION = Path(__file__).with_name("shapes_clip_vision.safetensors")
CLASSIFIER = Path(__file__).with_name("shapes_classifier.safetensors")
