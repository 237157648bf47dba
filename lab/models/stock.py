"""The checkpoint and its companions in the host, through its stock loaders."""

from pathlib import Path

import folder_paths
import nodes
from comfy_extras.nodes_hypernetwork import HypernetworkLoader
from torch import Tensor

from ..comfy.runs import of_host
from ..weights import CHECKPOINT, CLIP_TEXT, CLIP_VISION, CONTROLNET, DEPTH, FLUX, LORA
from . import register


def load(checkpoint: Path = CHECKPOINT):
    """(model, clip, vae) of a checkpoint of this structure."""
    register()
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]


def load_flux(checkpoint: Path = FLUX):
    """(model, clip, vae) of the joint model, which has the text-to-image model's own VAE."""
    return *load(checkpoint)[:2], load()[2]


def load_clip_pair(text: Path = CLIP_TEXT, vision: Path = CLIP_VISION):
    """(clip, clip_vision), two towers in one space: the text's pooled output, the picture's `image_embeds`."""
    register()
    folder_paths.add_model_folder_path("text_encoders", str(text.parent))
    folder_paths.add_model_folder_path("clip_vision", str(vision.parent))
    clip = nodes.CLIPLoader().load_clip(text.name, "stable_diffusion")[0]
    return clip, nodes.CLIPVisionLoader().load_clip(vision.name)[0]


def load_depth(file: Path = DEPTH):
    """The depth network, as the depth loss takes it."""
    from comfy_extras.nodes_moge import LoadMoGeModel  # which older hosts have not

    folder_paths.add_model_folder_path("geometry_estimation", str(file.parent))
    return of_host(LoadMoGeModel, file.name)


def with_lora(model, clip, lora: Path = LORA, strength: float = 1.0):
    """The model with a LoRA, which has no part for the text encoder."""
    folder_paths.add_model_folder_path("loras", str(lora.parent))
    return nodes.LoraLoader().load_lora(model, clip, lora.name, strength, strength)[0]


def with_hypernetwork(model, file: Path, strength: float = 1.0):
    """The model with a hypernetwork, of a `.pt` file."""
    folder_paths.add_model_folder_path("hypernetworks", str(file.parent), is_default=True)  # before others of that name
    return of_host(HypernetworkLoader, model, file.name, strength)


def with_control(positive, negative, pixels: Tensor, control: Path = CONTROLNET, strength: float = 1.0):
    """Both conditionings told by a picture (1, H, W, 3) through a ControlNet or a T2I-Adapter."""
    register()
    folder_paths.add_model_folder_path("controlnet", str(control.parent))
    network = nodes.ControlNetLoader().load_controlnet(control.name)[0]
    return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, network, pixels, strength, 0.0, 1.0)
