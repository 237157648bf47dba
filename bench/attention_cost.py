"""What Prompt-to-Prompt costs at the size of SD1.5 (random weights): plain sampling, ours, and as it was published."""

import statistics
import time
import weakref
from contextlib import contextmanager
from functools import partial

import comfy.model_management as management
import comfy.samplers
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..demo.metrics import markdown_table
from ..demo.shapes import stock
from ..nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from . import published_prompt_to_prompt
from .host_run import sample_noise

SIDE, CFG, ENDS = 64, 7.5, (0.8, 0.4)
SHARES = 0.25, 0.3, 0.35
"""Of the run: two steps in which all edits act, the local blend too."""
TURNS = 50 if torch.cuda.is_available() else 2
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
    "adm_in_channels": None,
}


def variants() -> dict:
    """What is compared, by name: functions that run the two steps. The first is the host alone."""
    model, noise = random_model(), torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    clip, latent = stock.load()[1], torch.zeros(1, 4, SIDE, SIDE)
    sigmas = torch.tensor([model.get_model_object("model_sampling").percent_to_sigma(share) for share in SHARES])
    source, target, empty = random_texts(3)
    host = comfy.samplers.CFGGuider(model)
    host.set_conds([[torch.cat([source[0][0], target[0][0]]), {}]], empty)
    host.set_cfg(CFG)
    euler, both = comfy.samplers.sampler_object("euler"), torch.cat([latent, latent])
    swap = edit_of(clip, "a photo of a cat on a mat", "a photo of a dog on a mat")
    added = edit_of(clip, "a photo of a cat on a mat", "a photo of a fluffy cat on a red mat")
    lockstep = {
        f"SteerPromptToPromptGuider, {name}": SteerPromptToPromptGuider.execute(
            model, source, target, empty, CFG, edit, *ENDS
        ).args[0]
        for name, edit in (("replace", swap), ("refine", added))
    }
    return {
        "host CFGGuider": partial(sample_noise, host, euler, sigmas, both, torch.cat([noise, noise])),
        **{name: partial(sample_noise, guider, euler, sigmas, latent, noise) for name, guider in lockstep.items()},
        "as published, refine": partial(
            published_prompt_to_prompt.sample, model, (source, target), empty, CFG, added, ENDS, sigmas, noise
        ),
    }


def random_model():
    """SD1.5's UNet in the host, activations of about unit size; its attention is PyTorch's."""
    device = management.get_torch_device()
    config = comfy.supported_models.SD15(SD15)
    config.set_inference_dtype(torch.float16 if device.type == "cuda" else torch.float32, None)
    model = config.get_model({}, "", device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(float(name.endswith("weight")))
        else:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    patcher = ModelPatcher(model, device, management.unet_offload_device())
    patcher.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)
    )
    return patcher


def random_texts(count: int) -> list:
    generator = torch.Generator().manual_seed(1)
    return [[[torch.randn(1, 77, SD15["context_dim"], generator=generator), {}]] for _ in range(count)]


def edit_of(clip, source: str, target: str):
    edit = SteerPromptEdit.execute(clip, source, target, "auto", "").args[2]
    return SteerLocalBlend.execute(edit, "cat", target.split()[4], 0.3).args[0]
