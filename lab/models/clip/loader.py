"""Teaches ComfyUI's stock CLIP loaders the shapes pair, whose sizes they cannot tell from a file.

Two host functions are wrapped once; every file that is not one of the pair goes on to the host's own, as it came.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip

from ..embedding_rows import VOCABULARY, expanded
from ..host_functions import is_marked, wrap

JOINT = 64  # width of the space that both towers embed into, and of the text tower
TEXT_CONFIG = {
    "hidden_size": JOINT,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "vocab_size": VOCABULARY,
}
VISION_FILE = Path(__file__).with_name("vision_config.json")  # older hosts take a configuration only as a file
VISION_CONFIG = json.loads(VISION_FILE.read_text())
TEXT_MARK = "text_model.embeddings.position_embedding.weight", (TEXT_CONFIG["max_position_embeddings"], JOINT)
VISION_MARK = "visual_projection.weight", (JOINT, VISION_CONFIG["hidden_size"])


class PairTextEncoder(comfy.sd1_clip.SDClipModel):
    """CLIP's text tower at toy size. Its pooled output is the projected one: the embedding in the joint space.

    The host's own class for a CLIP-L from `CLIPLoader` gives the unprojected one.
    """

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, model_options=model_options or {}, textmodel_json_config=dict(TEXT_CONFIG)
        )


def register() -> None:
    """Make the host's loaders know the pair; doing so again, under whatever module name, changes nothing."""
    wrap(comfy.sd, "load_text_encoder_state_dicts", _text_loader)
    wrap(comfy.clip_vision, "load_clipvision_from_sd", _vision_loader)


def _text_loader(host: Callable) -> Callable:
    signature = inspect.signature(host)

    def load(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        states = given.get("state_dicts", [])
        if len(states) == 1 and is_marked(states[0], TEXT_MARK):
            given["state_dicts"] = [expanded(states[0])]
            given["model_options"] = {**given.get("model_options", {}), "clip_l_class": PairTextEncoder}
            return host(**given)
        return host(*args, **kwargs)

    return load


def _vision_loader(host: Callable) -> Callable:
    def load(sd, *args, **kwargs):
        return _vision(sd) if is_marked(sd, VISION_MARK) else host(sd, *args, **kwargs)

    return load


def _vision(sd: dict):
    """The host's CLIP vision object of our vision tower."""
    clip = comfy.clip_vision.ClipVisionModel(str(VISION_FILE))
    missing = clip.load_sd(sd)[0]
    if missing:
        raise ValueError(f"the shapes vision tower lacks {', '.join(missing)}: train it again (lab/models/clip)")
    return clip
