"""A tiny text-to-image model of coloured shapes, and the pictures it was trained on with their ground truth."""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("shapes.safetensors")
CLIP_TEXT = Path(__file__).with_name("shapes_clip_text.safetensors")
CLIP_VISION = Path(__file__).with_name("shapes_clip_vision.safetensors")
CLASSIFIER = Path(__file__).with_name("shapes_classifier.safetensors")
LORA = Path(__file__).with_name("shapes_lora.safetensors")
CONTROLNET = Path(__file__).with_name("shapes_controlnet.safetensors")
T2I_ADAPTER = Path(__file__).with_name("shapes_t2i_adapter.safetensors")
INPAINTING_ADDITIONS = Path(__file__).with_name("shapes_inpainting_additions.safetensors")
