"""Checks a node's inputs before it runs, and puts its name before its errors.

The host checks the types of connected outputs. It does not look at a literal in place of a wire, which the API can
send, nor at what comes from an output of any type.
"""

from collections.abc import Callable, Mapping
from functools import cache, wraps
from inspect import signature
from numbers import Real
from types import UnionType
from typing import NamedTuple

import torch
from numpy import bool_
from torch import Tensor

from ..attention.attention_maps import Recording
from ..attention.paint_with_words import Region
from ..attention.prompt_to_prompt import Edit
from ..samplers.classifier import Classifier
from ..samplers.inversion import Inversion
from .host import depth, errors_of


class Kind(NamedTuple):
    """The values of a type of input."""

    is_one: Callable[[object], bool]
    needed: str
    """What belongs there, and which nodes give it."""


def having(*names: str) -> Callable[[object], bool]:
    """Whether a value has these attributes. Not of which class it is: other packs have guiders and samplers too."""
    return lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in names)


def of(kind: type | UnionType) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _is_tensor(value) -> bool:
    """Whether it is a dense tensor of real numbers, with its values in memory."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_nested or value.is_meta)
    )


def _is_model(value) -> bool:
    """Whether it has a diffusion model: depth networks are patched by the host in the same way."""
    return having("clone", "get_model_object", "model")(value) and hasattr(value.model, "model_sampling")


def _is_conditioning(value) -> bool:
    """Whether it is a list whose entries are (tensor of the text, options)."""
    if isinstance(value, str | bytes | Mapping | Tensor) or not having("__iter__", "__len__")(value):
        return False
    return all(isinstance(entry, list | tuple) and len(entry) == 2 and _is_encoded(*entry) for entry in value)


def _is_encoded(text, options) -> bool:
    if not _is_tensor(text) or text.ndim < 3 or not text.numel() or not isinstance(options, Mapping):
        return False
    pooled = options.get("pooled_output")
    return all(isinstance(key, str) for key in options) and (pooled is None or _is_tensor(pooled) and pooled.ndim > 0)


def _is_latent(value) -> bool:
    """Whether it has samples and, if any, a noise mask that are tensors, or packs of several."""
    if not isinstance(value, Mapping):
        return False
    samples, mask = (value.get(name) for name in ("samples", "noise_mask"))
    is_one = [_is_tensor(value) or getattr(value, "is_nested", False) for value in (samples, mask)]
    return is_one[0] and (mask is None or is_one[1])


def _is_sampler(value) -> bool:
    """Whether it has a `sample` and is no guider, which has one too."""
    return having("sample")(value) and not hasattr(value, "model_patcher")


def _is_sigmas(value) -> bool:
    return _is_tensor(value) and value.ndim == 1 and value.dtype != torch.bool


def _is_regions(value) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(region, Region) for region in value)


def _is_operators(value) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(having("fitted", "size"), value))


KINDS = {
    "MODEL": Kind(_is_model, "a MODEL, as Load Checkpoint gives it"),
    "CLIP": Kind(having("tokenize", "encode_from_tokens"), "a CLIP, as Load Checkpoint and Load CLIP give it"),
    "VAE": Kind(having("first_stage_model", "patcher"), "a VAE with its weights, as Load VAE gives it"),
    "CLIP_VISION": Kind(having("encode_image", "model", "patcher"), "a CLIP_VISION, as Load CLIP Vision gives it"),
    "CONDITIONING": Kind(
        _is_conditioning, "a CONDITIONING, a list of [tensor of the text, options], as CLIP Text Encode gives it"
    ),
    "LATENT": Kind(_is_latent, "a LATENT, a dict whose samples (and noise_mask) are tensors, as VAE Encode gives it"),
    "IMAGE": Kind(_is_tensor, "an IMAGE, a tensor (batch, height, width, channels), as Load Image gives it"),
    "MASK": Kind(_is_tensor, "a MASK, a tensor (batch, height, width), as Load Image gives it"),
    "NOISE": Kind(having("generate_noise", "seed"), "a NOISE, as RandomNoise gives it"),
    "GUIDER": Kind(having("sample", "model_patcher"), "a GUIDER, as CFGGuider gives it"),
    "SAMPLER": Kind(_is_sampler, "a SAMPLER, as KSamplerSelect gives it"),
    "SIGMAS": Kind(_is_sigmas, "SIGMAS, a tensor with one number for each level, as BasicScheduler gives them"),
    "DA3_MODEL,MOGE_MODEL": Kind(
        depth.is_depth_model,
        "a depth model, as Load Depth Anything 3 and Load MoGe Model (in ComfyUI 0.33) give it",
    ),
    "STEER_INVERSION": Kind(of(Inversion), "the inversion of SteerDDIMInversion or SteerLoadInversion"),
    "STEER_EDIT": Kind(of(Edit), "the edit of SteerPromptEdit or SteerLocalBlend"),
    "STEER_ATTENTION": Kind(of(Recording), "the attention of SteerCaptureAttention"),
    "STEER_REGIONS": Kind(_is_regions, "the regions of SteerRegion or SteerRegionsFromSegmentation"),
    "STEER_LOSS": Kind(
        having("noisy", "start"), "the loss of SteerCLIPTextLoss, SteerCLIPImageLoss or SteerClassifierLoss"
    ),
    "STEER_OPERATOR": Kind(_is_operators, "the operator of SteerGrayOperator, SteerResizeOperator and the like"),
    "STEER_CLASSIFIER": Kind(of(Classifier), "the classifier of SteerClassifierLoader"),
    "INT": Kind(of(Real), "a whole number"),
    "FLOAT": Kind(of(Real), "a number"),
    "BOOLEAN": Kind(of(Real | bool_), "true or false"),
    "STRING": Kind(of(str), "a text"),
    "COMBO": Kind(of(str), "one of its choices, a text"),
}
"""By the host's name of the type. Which numbers, texts and shapes fit, the nodes say themselves."""
WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO"}


def check_inputs(node: type) -> None:
    """Wraps the node's `execute`: its inputs are checked first, and its errors begin with the node's name.

    ValueError for a value of another type than the schema's, and for a number outside its bounds. The editor checks
    what is typed in, but not what arrives over a wire.
    """
    execute = node.execute.__func__
    parameters = signature(execute)

    @cache
    def schema() -> tuple:
        """The node's name, and its inputs; asked once, as it lists files."""
        defined = node.define_schema()
        return defined.node_id, defined.inputs

    @wraps(execute)
    def checked(cls, *args, **kwargs):
        (node_id, inputs), bound = schema(), parameters.bind(cls, *args, **kwargs)
        with errors_of(node_id):
            items = [item for item in inputs if item.id in bound.arguments]
            for item in items:
                check_kind(item, bound.arguments[item.id])
            for item in items:
                if item.io_type in ("INT", "FLOAT"):
                    bound.arguments[item.id] = number(item, bound.arguments[item.id])
            return execute(*bound.args, **bound.kwargs)

    node.execute = classmethod(checked)


def check_kind(item, value) -> None:
    """ValueError for a value of another type than the input's; None may stand for nothing connected."""
    kind = KINDS[item.io_type]
    nothing = value is None and item.optional and item.io_type not in WIDGETS
    if not nothing and not kind.is_one(value):
        raise ValueError(f"{item.id} is {_shown(value)}; it needs {kind.needed}")


def number(item, value: float) -> float | int:
    """The value of a numeric input, an int where it is to be whole; ValueError unless it is within the bounds."""
    if not item.min <= value <= item.max:  # a NaN fails every comparison
        raise ValueError(f"{item.id} is {value}; it needs to be from {item.min:g} to {item.max:g}")
    if item.io_type == "FLOAT":
        return value
    if value != int(value):
        raise ValueError(f"{item.id} is {value}; it needs to be a whole number from {item.min} to {item.max}")
    return int(value)


def _shown(value) -> str:
    """A few words for a value that is refused."""
    if isinstance(value, Tensor):
        sizes = "several sizes" if value.is_nested else f"the shape {tuple(value.shape)}"
        text = f"a tensor of {sizes} ({value.dtype}, {value.layout}, {value.device})"
    elif isinstance(value, Mapping):
        text = f"a dict with {', '.join(map(repr, list(value)[:5])) or 'nothing in it'}"
    elif value is None or isinstance(value, str | Real):
        text = repr(value)
    else:
        text = f"of the type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."
