"""The checkpoint and the CLIP pair in the host, through its stock loaders."""

from pathlib import Path

import folder_paths
import nodes

from .. import shapes_loader
from . import CHECKPOINT, CLIP_TEXT, CLIP_VISION


def load(checkpoint: Path = CHECKPOINT):
    """(model, clip, vae) of a checkpoint of this structure."""
    shapes_loader.register()
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]


def load_clip_pair(text: Path = CLIP_TEXT, vision: Path = CLIP_VISION):
    """(clip, clip_vision), two towers in one space: the text's pooled output, the picture's `image_embeds`."""
    shapes_loader.register()
    folder_paths.add_model_folder_path("text_encoders", str(text.parent))
    folder_paths.add_model_folder_path("clip_vision", str(vision.parent))
    clip = nodes.CLIPLoader().load_clip(text.name, "stable_diffusion")[0]
    return clip, nodes.CLIPVisionLoader().load_clip(vision.name)[0]
