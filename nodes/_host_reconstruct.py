"""A VAE of the host fitted to one picture: its decoder with weights of its own, or the latent it decodes."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import comfy.model_management
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm

from ..samplers.masks import paints
from ..samplers.reconstruct import Reconstruction, reconstruct
from ._host import log, tell_empty
from ._host_checks import errors_of
from ._host_clip_guidance import decoded
from ._host_gradients import Differentiable, gradients
from ._host_shown import show_progress_text

PREVIEW = 512  # pixels that a preview has at most
ACTIVATIONS = 1.7  # of what the host reckons for decoding in float32; bench/reconstruct.md measures it


def check_tunable(vae, latent: Tensor) -> None:
    """ValueError unless the VAE decodes such a latent into one picture, with weights that can be changed."""
    model = vae.first_stage_model
    kind = type(model).__name__
    if model is None or not hasattr(model, "decode") or not _host_layers(model):
        raise ValueError(
            f"vae ({'none' if model is None else kind}) has no decoder with weights of its own, so there is nothing to "
            "optimise; connect the VAE of an image model (AutoencoderKL, TAESD)"
        )
    if latent.is_nested or vae.latent_dim != 2 or (latent.ndim == 5 and latent.shape[2] != 1) or latent.ndim < 4:
        shape = "a pack of several" if latent.is_nested else f"of shape {tuple(latent.shape)}"
        raise ValueError(
            f"latent is {shape} and the VAE ({kind}) one for latents of {vae.latent_dim} dimensions: only VAEs of "
            "single pictures work, not those of video or sound"
        )
    if latent.shape[1] != vae.latent_channels:
        raise ValueError(
            f"latent has {latent.shape[1]} channels and vae {vae.latent_channels}; connect the VAE that the latent "
            "belongs to"
        )


def decoded_size(vae, latent: Tensor) -> tuple[int, int]:
    """(height, width) of the picture that a latent decodes to."""
    ratio = vae.spacial_compression_decode()
    return latent.shape[-2] * ratio, latent.shape[-1] * ratio


def _host_layers(model) -> list[tuple[str, torch.nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if hasattr(layer, "weight_function")]


@contextmanager
def own_weights(model: torch.nn.Module) -> Iterator[dict[str, Parameter]]:
    """Inside, the host's layers compute with copies of their weights, which are made as each is first used.

    The copies are what is yielded, by name, in the dtype that is computed in. The model's weights are only read. The
    copies are gone afterwards.
    """
    copies: dict[str, Parameter] = {}
    layers = [layer for _, layer in _host_layers(model)]
    before = [{key: vars(layer)[key] for key in FUNCTIONS if key in vars(layer)} for layer in layers]
    try:
        for name, layer in _host_layers(model):
            for kind, functions in zip(("weight", "bias"), FUNCTIONS, strict=True):
                if getattr(layer, kind, None) is not None:
                    own = partial(_own, copies, f"{name}.{kind}")
                    setattr(layer, functions, [*getattr(layer, functions), own])
        yield copies
    finally:
        for layer, functions in zip(layers, before, strict=True):
            for key in FUNCTIONS:
                vars(layer).pop(key, None)
            vars(layer).update(functions)
        copies.clear()


FUNCTIONS = ("weight_function", "bias_function")


def _own(copies: dict[str, Parameter], name: str, weight: Tensor, **_) -> Tensor:
    if name not in copies:
        copies[name] = Parameter(weight.detach().clone())
    return copies[name]


@contextmanager
def loaded(node: str, vae, shape, weights: bool) -> Iterator[Differentiable]:
    """The VAE loaded with room for the gradients; afterwards it is as before.

    ValueError before anything runs, and the host's out-of-memory error with what would help.
    """
    differentiable = Differentiable(vae.patcher, weights=weights)
    device, needed = differentiable.patcher.load_device, memory_needed(vae, shape, weights)
    log.info("%s: about %.2f GiB of memory for each picture", node, needed / 2**30)
    try:
        comfy.model_management.load_models_gpu([differentiable.patcher], memory_required=needed)
        free = comfy.model_management.get_free_memory(device)
        if needed > free:
            raise ValueError(
                f"about {needed / 2**30:.2f} GiB of memory are needed for the gradients of one picture and "
                f"{free / 2**30:.2f} are free; {LESS}"
            )
        yield differentiable
    except comfy.model_management.OOM_EXCEPTION as error:
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise type(error)(f"{node}: the gradients do not fit into memory; {LESS}. ({error})") from error
    finally:
        comfy.model_management.load_models_gpu([vae.patcher])
        comfy.model_management.soft_empty_cache()


LESS = (
    "take a smaller picture, or crop source, mask and latent (Crop Image, Crop Mask, Crop Latent) to the mask with a "
    "margin and paste the result back; SteerPoissonBlend and SteerStitch need no gradients"
)


def memory_needed(vae, shape, weights: bool) -> float:
    """About how many bytes one picture's gradients take, and with `weights` the decoder's copy and its optimizer."""
    activations = ACTIVATIONS * vae.memory_used_decode((1, *shape[1:]), torch.float32)
    decoder = sum(weight.numel() for name, weight in vae.first_stage_model.named_parameters() if "encoder" not in name)
    return activations + 4 * 4 * decoder * weights  # a weight, its gradient and Adam's two moments, in float32


class Progress:
    """Shows each update of several pictures: the bar, the loss, the picture; and heeds an interrupt."""

    def __init__(self, name: str, pictures: int, steps: int):
        self.node, self.pictures, self.steps, self.done = name, pictures, steps, 0
        self.bar = comfy.utils.ProgressBar(pictures * (steps + 1))
        self.shown = tqdm(total=pictures * (steps + 1), desc=name)

    def show(self, item: Reconstruction) -> None:
        index, self.done = self.done // (self.steps + 1), self.done + 1
        preview = None
        if args.preview_method != LatentPreviewMethod.NoPreviews:
            pixels = (item.picture[0].clamp(0, 1) * 255).round().byte().movedim(0, -1)
            preview = ("JPEG", Image.fromarray(pixels.cpu().numpy()), PREVIEW)
        self.bar.update_absolute(self.done, preview=preview)
        self.shown.set_postfix(loss=f"{item.loss:.2e}", refresh=False)
        self.shown.update()
        show_progress_text(
            f"{self.node}: picture {index + 1} of {self.pictures}, update {item.updates} of {self.steps}: "
            f"loss {item.loss:.2e}"
        )
        comfy.model_management.throw_exception_if_processing_interrupted()


@dataclass(frozen=True)
class Problem:
    """A latent (1, channels, h, w) whose picture is to be the source (1, H, W, 3) outside the mask (1, H, W)."""

    source: Tensor
    latent: Tensor
    mask: Tensor
    steps: int
    learning_rate: float

    def fit(self, vae, decoder: Differentiable, latent: Tensor, parameters: Callable) -> Iterator[Reconstruction]:
        source, mask = self.source.movedim(-1, 1).to(latent), self.mask[:, None].to(latent)
        return reconstruct(
            lambda: decoded(vae, decoder, latent, torch.float32), parameters, source, mask, self.steps,
            self.learning_rate, gradients,
        )  # fmt: skip


def fitted_latent(vae, decoder: Differentiable, problem: Problem, show: Callable[[Reconstruction], None]) -> Tensor:
    """The latent whose picture comes closest. The learning rate is in units of the latent's standard deviation."""
    with gradients():
        latent = Parameter(problem.latent.to(decoder.patcher.load_device, torch.float32, copy=True))
    problem = replace(problem, learning_rate=problem.learning_rate * (float(latent.std()) or 1.0))
    best, least = None, inf
    with closing(problem.fit(vae, decoder, latent, lambda: [latent])) as items:
        for item in items:
            if item.loss < least:
                best, least = latent.detach().clone(), item.loss
            show(item)
    return best.to(problem.latent)


def fitted_picture(vae, decoder: Differentiable, problem: Problem, show: Callable[[Reconstruction], None]) -> Tensor:
    """The picture (1, H, W, 3) that comes closest, of a decoder fitted to it and then forgotten."""
    latent, best = problem.latent.to(decoder.patcher.load_device, torch.float32), None
    with (
        own_weights(decoder.patcher.model) as weights,
        closing(problem.fit(vae, decoder, latent, lambda: list(weights.values()))) as items,
    ):
        for item in items:
            if best is None or item.loss < best.loss:
                best = item
            show(item)
    return best.picture.movedim(1, -1).clamp(0.0, 1.0).to(problem.source.device)


def fit_each(node: str, vae, fitted: Callable, problems: list[Problem]) -> Tensor:
    """`fitted_latent` or `fitted_picture` of each problem, one after the other.

    Where the mask is empty nothing was edited, and the latent or the source stays as it is.
    """
    weights, (first, *_) = fitted is fitted_picture, problems
    out = [problem.source if weights else problem.latent for problem in problems]
    left = [index for index, problem in enumerate(problems) if paints(problem.mask)]
    if left:
        with errors_of(node), loaded(node, vae, first.latent.shape, weights) as decoder:
            progress = Progress(node, len(left), first.steps)
            with progress.shown:
                for index in left:
                    out[index] = fitted(vae, decoder, problems[index], progress.show)
    masks = torch.cat([problem.mask for problem in problems])
    tell_empty(node, "mask", masks, f"the {'source' if weights else 'latent'} stays as it is")
    return torch.cat(out)
