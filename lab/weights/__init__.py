"""The weights of the models, by what they are."""

from pathlib import Path

CHECKPOINT = Path(__file__).with_name("shapes.safetensors")
CLIP_TEXT = Path(__file__).with_name("shapes_clip_text.safetensors")
CLIP_VISION = Path(__file__).with_name("shapes_clip_vision.safetensors")
CLASSIFIER = Path(__file__).with_name("shapes_classifier.safetensors")
LORA = Path(__file__).with_name("shapes_lora.safetensors")
CONTROLNET = Path(__file__).with_name("shapes_controlnet.safetensors")
T2I_ADAPTER = Path(__file__).with_name("shapes_t2i_adapter.safetensors")
INPAINTING_ADDITIONS = Path(__file__).with_name("shapes_inpainting_additions.safetensors")
