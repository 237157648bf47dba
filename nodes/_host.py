"""The one file that reads the host's internals: its noise laws, latents, masks and the way it runs a sampler."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from math import hypot, inf, isfinite
from weakref import ref

import comfy.latent_formats
import comfy.model_management
import comfy.samplers
import node_helpers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_sampling import CONST
from comfy_execution.utils import get_executing_context
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from ..samplers.blended_diffusion import Blend
from ..samplers.core import Denoiser, SampleNoise, Step, check_two, descending
from ..samplers.ddim import ddim
from ..samplers.guidance import branch_weights, cfg_with_empty
from ..samplers.inversion import Inversion, invert, largest_error, report
from ..samplers.masks import check_mask
from ..samplers.noise_law import Noise, NoiseLaw

log = logging.getLogger("steer")


@contextmanager
def errors_of(node: str):
    """Puts the node's name before the ValueErrors raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from error


def check_number(node: str, name: str, value: float, low: float, high: float = inf) -> None:
    """ValueError unless low <= value <= high. The editor checks this too, but not what arrives over a wire."""
    if not low <= value <= high or not isfinite(value):
        raise ValueError(
            f"{node}: {name} is {value}; it needs to be "
            + (f"from {low:g} to {high:g}" if isfinite(high) else f"at least {low:g}")
        )


def check_interval(node: str, start_percent: float, end_percent: float) -> None:
    """ValueError unless the two are shares of a run, the first before the second."""
    check_number(node, "start_percent", start_percent, 0.0, 1.0)
    check_number(node, "end_percent", end_percent, 0.0, 1.0)
    if start_percent >= end_percent:
        raise ValueError(
            f"{node}: start_percent {start_percent:g} is not before end_percent {end_percent:g}; "
            "0 and 1 guide the whole run"
        )


def strength_sigma(model_sampling, strength: float) -> float:
    """The noise level at a strength, the share of diffusion time from 0 (clean) to 1 (all noise)."""
    # at percent 0 the host answers a placeholder far above the model's range
    return min(float(model_sampling.percent_to_sigma(1.0 - strength)), float(model_sampling.sigma_max))


def noise_law(model_sampling) -> NoiseLaw:
    """The law a host model is sampled with; ValueError for one that mixes picture and noise in another way."""
    law = NoiseLaw(isinstance(model_sampling, CONST), float(getattr(model_sampling, "noise_scale", 1.0)))
    sigma = torch.tensor([0.5])
    # probed, since a subclass may mix in its own way (image-to-image models do)
    for x0, noise in ((1.0, 0.0), (0.0, 1.0)):
        mixed = model_sampling.noise_scaling(sigma, torch.tensor([[noise]]), torch.tensor([[x0]]), False)
        if not torch.allclose(mixed, law.noised(torch.tensor([[x0]]), 0.5, torch.tensor([[noise]]))):
            raise ValueError(
                f"a model sampled as {type(model_sampling).__bases__[-1].__name__} mixes picture and noise in a way "
                "Steer does not know; eps, v, EDM and rectified-flow models work"
            )
    return law


def check_latent(model, latent: Tensor, shapes=None) -> None:
    """ValueError unless the latent is finite and has the model's channels. A pack of several is not looked into."""
    if not torch.isfinite(latent).all():
        raise ValueError("latent_image holds NaN or infinite values; look at the node that made it")
    channels = model.latent_format.latent_channels
    # an all-zero latent is the host's empty latent, which it fits to the model itself
    if (shapes is None or len(shapes) == 1) and latent.shape[1] != channels and latent.any():
        raise ValueError(
            f"latent_image has {latent.shape[1]} channels and the model works on {channels}; "
            "encode the picture with this model's own VAE"
        )


def check_mask_fits(mask: Tensor, latent: Tensor) -> None:
    """ValueError for a mask of another aspect or batch, which the host would stretch or repeat in silence."""
    (mask_height, mask_width), (height, width) = mask.shape[-2:], latent.shape[-2:]
    if abs(mask_width * height / mask_height - width) >= 1.0:
        raise ValueError(
            f"the noise mask is {mask_width}x{mask_height} but the latent is {width}x{height}, of another aspect; "
            "make the mask from the picture that was encoded"
        )
    masks = mask.numel() // (mask_height * mask_width)
    if latent.ndim == 4 and latent.shape[0] % masks:
        raise ValueError(
            f"{masks} noise masks for a batch of {latent.shape[0]} latents; give one for all or one for each"
        )


def check_given(model, sigmas: Tensor, latent: Tensor, mask: Tensor | None) -> None:
    """ValueError for what a guider cannot run on, before the host looks at it. A pack of latents is not looked into."""
    check_two(sigmas)
    if not latent.is_nested:
        check_latent(model, latent)
        if mask is not None:
            check_mask_fits(mask, latent)


@dataclass(frozen=True)
class Run:
    """What a sampler was given, checked, in the terms of the math. `known` is the source latent (model space)."""

    sigmas: list[float]
    law: NoiseLaw
    known: Tensor
    mask: Tensor | None
    seed: int
    start_noise: Tensor
    lockstep: int = 1
    """How many equal parts of the batch are to get the same noise."""

    def noise(self, stream: str) -> Noise:
        """Fresh noise of this run, per sample; streams of different names are independent."""
        size = self.known.shape[0] // self.lockstep
        drawn = SampleNoise(self.seed, stream, self.start_noise[:size], self.known[:size])
        return lambda like: torch.cat([drawn(like[:size])] * self.lockstep)


def checked_run(
    guider, sigmas: Tensor, extra_args: dict, noise: Tensor, latent: Tensor, mask, needs_mask: bool, may_be_empty=False
) -> Run:
    """The run, after everything that can be checked before the first model call. Raises ValueError."""
    model = guider.inner_model
    check_latent(model, latent, getattr(model, "latent_shapes", None))
    if not torch.isfinite(noise).all():
        raise ValueError("noise holds NaN or infinite values; look at the node that made it")
    if needs_mask:
        if mask is None:
            raise ValueError(
                "latent_image has no noise mask, so there is nothing to keep; "
                "put 'Set Latent Noise Mask' between the VAE encode and the sampler"
            )
        check_mask(mask, may_be_empty)
        if "denoise_mask_function" in extra_args["model_options"]:
            raise ValueError(
                "the model changes the mask at each step (Differential Diffusion), which this sampler does not follow; "
                "remove that patch, or use it with SteerDDIMSampler or a sampler of the host"
            )
    seed = extra_args.get("seed") or 0
    lockstep = getattr(guider, "lockstep", 1)
    return Run(descending(sigmas.tolist()), noise_law(model.model_sampling), latent, mask, seed, noise, lockstep)


def denoiser(guider, extra_args: dict, **also) -> Denoiser:
    """The guider, or what the host wraps round it, as the math calls it; an interrupt stops it before the next call."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return guider(x, x.new_full((x.shape[0],), sigma), **extra_args, **also)

    return denoise


class SteerSampler(comfy.samplers.Sampler):
    """A host SAMPLER made of a generator of steps.

    `steps(denoise, x, run)` starts the generator from x at level run.sigmas[0]; `calls(n)` is its number of model
    calls for n steps. With `needs_mask` the generator does the masking itself; without, the host's own masked
    denoiser does it, as for the host's samplers.
    """

    def __init__(
        self,
        node: str,
        steps: Callable[[Denoiser, Tensor, Run], Iterator[Step]],
        calls: Callable[[int], int] = lambda count: count,
        needs_mask: bool = False,
    ):
        self.node, self.steps, self.calls, self.needs_mask = node, steps, calls, needs_mask

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask, self.needs_mask)
        model_sampling = model_wrap.inner_model.model_sampling
        x = model_sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        masked = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        masked.latent_image, masked.noise = latent_image, noise
        denoise = denoiser(masked, extra_args, denoise_mask=None if self.needs_mask else denoise_mask)
        total = self.calls(len(run.sigmas) - 1)
        for index, step in enumerate(tqdm(self.steps(denoise, x, run), total=total, disable=disable_pbar)):
            x = step.x
            if callback is not None:
                callback(index, step.denoised, step.x, total)
        return model_sampling.inverse_noise_scaling(sigmas[-1], x)


class BlendedSampler(comfy.samplers.Sampler):
    """Blended Latent Diffusion around another SAMPLER, which sees a guider that blends and no mask of its own."""

    needs_mask = True

    def __init__(self, node: str, sampler: comfy.samplers.Sampler, dilation: int):
        self.node, self.sampler, self.dilation = node, sampler, dilation

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask, needs_mask=True)
        blend = Blend(run.sigmas, run.law, run.known, run.mask, run.noise("known"), self.dilation)
        samples = self.sampler.sample(
            BlendedGuider(model_wrap, blend), sigmas, extra_args, callback, noise, latent_image, None, disable_pbar
        )
        # the inner sampler's result has been taken out of the flow law's scale; the source has to go the same way
        x = blend.finish(samples * run.law.alpha(run.sigmas[-1]))
        return model_wrap.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)


class WrappedGuider:
    """A guider as samplers use it, for one run; what a child does not change is the guider's."""

    def __init__(self, guider):
        self._guider = guider

    def __getattr__(self, name):
        return getattr(self._guider, name)


class BlendedGuider(WrappedGuider):
    """A guider whose every prediction is blended."""

    def __init__(self, guider, blend: Blend):
        super().__init__(guider)
        self._blend = blend

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        comfy.model_management.throw_exception_if_processing_interrupted()

        def denoise(x: Tensor, _: float) -> Tensor:
            return self._guider(x, sigma, model_options=model_options, seed=seed)

        return self._blend.denoise(denoise, x, float(sigma.max()))


class InvertedNoise:
    """A host NOISE that makes sampling start exactly at an inverted latent, from the LATENT it was given out with."""

    seed = 0

    def __init__(self, noise: Tensor):
        self._noise = noise

    def generate_noise(self, input_latent: dict) -> Tensor:
        shape = tuple(input_latent["samples"].shape)
        if shape != tuple(self._noise.shape):
            raise ValueError(
                f"the inverted noise is for a latent of shape {tuple(self._noise.shape)}, not {shape}; "
                "connect the LATENT of the same inversion"
            )
        return self._noise.clone()


def latent_format_of(inversion: Inversion):
    """The host's latent format of an inversion; ValueError unless this host has it and the channels agree."""
    name, channels = inversion.latent_format[:100], inversion.latents[0].shape[1]
    kind = getattr(comfy.latent_formats, name, None)
    if not (isinstance(kind, type) and issubclass(kind, comfy.latent_formats.LatentFormat)):
        raise ValueError(
            f"the inversion is of a model with the latent format {name!r}, which this ComfyUI does not have; "
            "update ComfyUI"
        )
    if channels != kind.latent_channels:
        raise ValueError(
            f"the inversion has {channels} channels, and its latent format {name} has {kind.latent_channels}; "
            "invert again with the model that will sample"
        )
    return kind()


def inversion_start(inversion: Inversion) -> tuple[Tensor, InvertedNoise]:
    """The source latent as the host passes it on wires, and the noise to start from `inversion.latents[0]` with it."""
    latent_format, sigma, law = latent_format_of(inversion), inversion.sigmas[0], inversion.law
    samples = latent_format.process_out(inversion.latents[-1])
    source = latent_format.process_in(samples) if samples.any() else samples
    return samples, InvertedNoise(noise_to(inversion.latents[0], source, sigma, law, inversion.from_top))


def noise_to(x: Tensor, source: Tensor, sigma: float, law: NoiseLaw, from_top: bool) -> Tensor:
    """The noise from which the host makes x at level sigma of the source; `from_top`: the model's highest level."""
    # what the host multiplies the noise by; at the highest level more, where alpha is 1
    factor = hypot(1.0, sigma) if from_top and not law.flow else law.std(sigma)
    return ((x.double() - law.alpha(sigma) * source.double()) / factor).float()


class InversionSampler(comfy.samplers.Sampler):
    """Walks the source up instead of sampling down. Made for one run, which leaves its `inversion` and `report`."""

    def __init__(self, node: str, refine: int, tolerance: float, check: bool):
        self.node, self.refine, self.tolerance, self.check = node, refine, tolerance, check
        self.inversion: Inversion | None = None
        self.report = ""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, None, needs_mask=False)
            if not latent_image.any():
                raise ValueError("latent_image is empty (all zero); encode the picture to invert")
            if run.sigmas[-1] != 0.0:
                raise ValueError(
                    f"the sigmas end at {run.sigmas[-1]:g}, but a picture is inverted from 0 up; "
                    "use the whole end of the schedule (the lower half of a split, SteerSDEditSigmas)"
                )
        count = len(run.sigmas) - 1
        mib = latent_image.numel() * 4 * (count + 1) / 2**20
        log.info("%s: %d steps; the trajectory takes %.1f MiB of memory, not on the GPU", self.node, count, mib)
        denoise, total = denoiser(model_wrap, extra_args), count * (2 if self.check else 1)
        levels, latents = [], [latent_image.float().cpu()]
        steps = invert(denoise, latent_image, run.sigmas, run.law, self.refine, self.tolerance)
        for index, level in enumerate(tqdm(steps, total=count, disable=disable_pbar)):
            latents.append(level.x.float().cpu())
            levels.append(level._replace(x=None, denoised=None))
            callback(index, level.denoised, level.x, total)
        model = model_wrap.inner_model
        self.inversion = Inversion(
            tuple(run.sigmas), tuple(reversed(latents)), run.law, type(model.latent_format).__name__,
            self.max_denoise(model_wrap, sigmas),
        )  # fmt: skip
        errors = None
        if self.check:
            back = ddim(denoise, level.x, run.sigmas, run.law)
            errors = []
            for index, step in enumerate(tqdm(back, total=count, disable=disable_pbar)):
                errors.append(largest_error(step.x, self.inversion.latents[index + 1], run.law, step.sigma))
                callback(count + index, step.denoised, step.x, total)
        self.report = report(self.inversion, levels, errors, self.tolerance)
        return latent_image


def read_by_patches(model_options: dict) -> bool:
    """Whether a patch reads the predictions, so that one that weighs nothing is needed all the same."""
    return any(model_options.get(f"sampler_{hook}cfg_function") for hook in ("pre_", "post_", ""))


class SteerCFG(comfy.samplers.CFGGuider):
    """The host's CFGGuider with an interval, a third conditioning, and its input checked before anything runs."""

    def __init__(self, node: str, model, cfg: float, negative_scale: float, interval: tuple[float, float]):
        super().__init__(model)
        self.node, self.cfg, self.negative_scale = node, cfg, negative_scale
        model_sampling = model.get_model_object("model_sampling")
        self.first_sigma, self.last_sigma = (model_sampling.percent_to_sigma(percent) for percent in interval)

    def set_conds(self, positive, negative, empty=None):
        conds = {"positive": positive, "negative": negative}
        if empty is not None:
            conds["empty"] = node_helpers.conditioning_set_values(empty, {"prompt_type": "negative"})
        self.inner_set_conds(conds)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        with errors_of(self.node):
            check_given(self.model_patcher.model, sigmas, latent_image, denoise_mask)
            if "empty" in self.original_conds and "sampler_cfg_function" in self.model_options:
                raise ValueError(
                    "the model has a patch that replaces the CFG formula (such as RescaleCFG), and `empty` asks for "
                    "another one; disconnect `empty` or remove the patch"
                )
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        positive, negative, empty = (self.conds.get(name) for name in ("positive", "negative", "empty"))
        inside = self.last_sigma <= float(timestep.max()) <= self.first_sigma
        if inside and empty is not None:
            return self._three_terms([positive, negative, empty], x, timestep, model_options)
        # at cfg 1 the host leaves the negative out, unless a patch asked for it
        cfg = self.cfg if inside else 1.0
        if cfg == 0.0 and not read_by_patches(model_options):
            positive = None
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, cfg, model_options=model_options, seed=seed
        )

    def _three_terms(self, conds, x, timestep, model_options):
        if not read_by_patches(model_options):
            weights = branch_weights(self.cfg, self.negative_scale)
            conds = [cond if weight else None for cond, weight in zip(conds, weights, strict=True)]
        args = {
            "conds": conds,
            "input": x,
            "sigma": timestep,
            "model": self.inner_model,
            "model_options": model_options,
        }
        calculate = model_options.get("sampler_calc_cond_batch_function")
        if calculate is not None:
            out = calculate(args)
        else:
            out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        args.update(cond_scale=self.cfg, timestep=timestep)
        for patch in model_options.get("sampler_pre_cfg_function", []):
            out = patch({**args, "conds_out": out})
        denoised = cfg_with_empty(*out, self.cfg, self.negative_scale)
        args.update(cond=conds[0], uncond=conds[1], cond_denoised=out[0], uncond_denoised=out[1])
        for patch in model_options.get("sampler_post_cfg_function", []):
            denoised = patch({**args, "denoised": denoised})
        return denoised


class _PlainTensors(TorchFunctionMode):
    """Lets autograd work with what it meets in the host: inference tensors, and blocks that work in place.

    `keep` is for what autograd saves for the way back. What the host then changes in place (`h += control`, the
    residuals of Flux's blocks) is first copied where it was saved.
    """

    def __init__(self):
        super().__init__()
        self.limit = inf
        """How many bytes may be kept, but for the storages in `free`."""
        self.free: set[int] = set()
        self._kept: dict[int, list[ref[Tensor]]] = {}
        self._sizes: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        alias, place = tensor.detach(), _place(tensor)
        kept = self._kept.setdefault(place, [])
        kept[:] = [*(held for held in kept if held() is not None), ref(alias)]
        if self.limit < inf and place not in self.free:
            self._sizes[place] = tensor.untyped_storage().nbytes()
            if sum(self._sizes.values()) > self.limit:
                raise GraphTooLarge
        return alias

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a tensor's shape, dtype and the like
            return func(*args, **kwargs)
        tensors = _tensors_in((*args, *kwargs.values()))
        in_place = name == "__setitem__" or name.endswith("_") and not name.endswith("__")
        if in_place and tensors:
            self._spare(tensors[0])
        if any(tensor.requires_grad for tensor in tensors):
            if any(tensor.is_inference() for tensor in tensors):
                # autograd may save any of them for the way back, and it cannot save an inference tensor
                args, kwargs = tree_map(_plain, (args, kwargs))
        elif in_place and tensors and tensors[0].is_inference():
            # the host fills a buffer of its own, such as the one for weights on their way from the CPU
            with torch.inference_mode():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _spare(self, tensor: Tensor) -> None:
        """Gives what was kept of a tensor that is about to change a memory of its own."""
        for held in self._kept.pop(_place(tensor), ()):
            alias = held()
            if alias is not None:
                alias.data = alias.data.clone()


def _tensors_in(values) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors_in(value)
    return found


def _plain(value):
    return value.detach().clone() if isinstance(value, Tensor) and value.is_inference() else value


_keeping: ContextVar[_PlainTensors] = ContextVar("steer_gradients")


@contextmanager
def gradients():
    """Inside, calls of a `Differentiable`'s model can be differentiated, even from a node's inference mode.

    The way back has to be inside as well. Never yield inside: the modes would leak to whoever iterates.
    """
    keeping = _PlainTensors()
    hooks = torch.autograd.graph.saved_tensors_hooks(keeping.keep, lambda tensor: tensor)
    token = _keeping.set(keeping)
    try:
        with torch.inference_mode(False), torch.enable_grad(), _in_training(), hooks, keeping:
            yield
    finally:
        _keeping.reset(token)


@contextmanager
def _in_training():
    """The host's own sign that what is computed will be differentiated: fused kernels have no way back."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:  # older hosts, which have no such kernels
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


class GraphTooLarge(Exception):
    """Raised on the way forward when what it keeps for the way back would not fit."""


class Differentiable:
    """A model patcher's model (a model, a VAE, a CLIP vision) as it is called inside `gradients`.

    `patcher` is a clone to load and run instead of the given one. There each weight goes through `_usable`, so that
    autograd can keep it, and so that layers with quantised arithmetic compute in full. The weights themselves are
    shared and stay as they are.
    Where the activations do not fit they are not kept, and computed again block by block: `recompute` says so, None
    until the first call has found it out. With `weights` the way back reaches weights that can be differentiated too.
    """

    def __init__(self, patcher, recompute: bool | None = None, weights: bool = False):
        self.patcher, self.recompute, self.weights = patcher.clone(), recompute, weights
        for name, layer in self.patcher.model.named_modules():
            if hasattr(layer, "weight_function"):  # the host's layers; others use their weights as they are
                for kind in ("weight", "bias"):
                    if getattr(layer, kind, None) is not None:
                        self.patcher.add_weight_wrapper(f"{name}.{kind}", partial(_usable, layer, kind))

    def __call__(self, call: Callable):
        """What `call()` returns, a function that calls the model."""
        if self.recompute is None:
            try:
                # the way back needs room of its own
                free = comfy.model_management.get_free_memory(self.patcher.load_device)
                with _graph_within(0.6 * free, self.patcher.model):
                    result = call()
                self.recompute = False
                return result
            except (GraphTooLarge, comfy.model_management.OOM_EXCEPTION):
                self.recompute = True
                log.info("the activations of one model call do not fit: they are computed again on the way back")
                comfy.model_management.soft_empty_cache()
        if not self.recompute:
            return call()
        with _recomputing(blocks_of(self.patcher.model), _recomputed_with_weights if self.weights else _recomputed):
            return call()


def _usable(layer: torch.nn.Module, kind: str, weight: Tensor, **_) -> Tensor:
    """The weight as autograd can keep it: not an inference tensor, nor in a buffer for the next offloaded layer."""
    own, changes = getattr(layer, kind).data, getattr(layer, f"{kind}_function", ())
    if type(own) is Tensor and len(changes) == 1 and (own.device, own.dtype) == (weight.device, weight.dtype):
        shared = torch.empty(0, dtype=own.dtype, device=own.device)
        return shared.set_(own.untyped_storage(), own.storage_offset(), own.shape, own.stride())
    return weight.detach().clone()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _graph_within(limit: float, model: torch.nn.Module):
    """Raises GraphTooLarge as soon as autograd keeps more than `limit` bytes, the model's own weights aside."""
    keeping = _keeping.get()
    keeping.limit, keeping.free = limit, {_place(weight) for weight in model.parameters()}
    try:
        yield
    finally:
        keeping.limit = inf


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts whose activations to recompute together: each is called, and holds at most an eighth of the weights."""
    largest = sum(weight.numel() for weight in module.parameters()) / 8

    def search(part: torch.nn.Module):
        for child in part.children():
            called = type(child).forward is not torch.nn.Module.forward and not isinstance(child, torch.nn.Sequential)
            if not called or sum(weight.numel() for weight in child.parameters()) > largest:
                yield from search(child)
            elif any(True for _ in child.children()):
                yield child

    return list(search(module))


@contextmanager
def _recomputing(blocks: list[torch.nn.Module], recomputed: Callable):
    """Inside, what the blocks compute is not kept but computed again on the way back; afterwards they are as before."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(recomputed, block.forward)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _recomputed(forward: Callable, *args, **kwargs):
    # blocks note their place in the options they are given: each time they get a copy of these, as they are now
    values, structure = tree_flatten((args, kwargs))
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    tensors = [values[place] for place in places]
    values = [None if place in places else value for place, value in enumerate(values)]  # kept, but not those tensors

    def call(*tensors: Tensor):
        own = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            own[place] = tensor.clone()  # the block may change it
        own_args, own_kwargs = tree_unflatten(own, structure)
        return forward(*own_args, **own_kwargs)

    return _ComputedTwice.apply(call, *tensors) if places else forward(*args, **kwargs)


def _recomputed_with_weights(forward: Callable, *args, **kwargs):
    """The same by PyTorch's checkpoint, which finds the weights, but does not notice that what it saved was changed."""
    kept = tree_map(_copied, (args, kwargs))

    def call():
        own_args, own_kwargs = tree_map(_copied, kept)
        return forward(*own_args, **own_kwargs)

    return checkpoint(call, use_reentrant=False)


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


class _ComputedTwice(torch.autograd.Function):
    """`call(*tensors)`, of which nothing but its input is kept for the way back.

    PyTorch's own checkpoint does not notice when what it has saved is changed in place.
    """

    @staticmethod
    def forward(ctx, call: Callable, *tensors: Tensor):
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return call(*tensors)

    @staticmethod
    def backward(ctx, *given: Tensor):
        with gradients():
            tensors = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            out = ctx.call(*tensors)
            pairs = zip(out if isinstance(out, tuple) else (out,), given, strict=True)
            reached = [(each, gradient) for each, gradient in pairs if gradient is not None and each.requires_grad]
            outs, back = zip(*reached, strict=True)
            return None, *torch.autograd.grad(outs, tensors, back, allow_unused=True)


def gradient_options(model_options: dict) -> dict:
    """The model options for calls inside `gradients`: attention that has a way back, on one device."""
    transformer_options = dict(model_options.get("transformer_options", {}))
    previous = transformer_options.get("optimized_attention_override")
    # the host's own override only picks a back-end; another may change the attention, and is called
    picks = previous is None or "set_model_optimized_attention" in getattr(previous, "__qualname__", "")

    def attention_override(_, *args, **kwargs):
        return attention_pytorch(*args, **kwargs) if picks else previous(attention_pytorch, *args, **kwargs)

    transformer_options["optimized_attention_override"] = attention_override
    options = {**model_options, "transformer_options": transformer_options}
    options.pop("multigpu_clones", None)  # the host's worker threads record no gradients
    return options


class Branches:
    """The predictions of one run apart: the positive's, and the negative's under embeddings that can be differentiated.

    Made by the host's own processing of conditionings, so that ControlNets, masks and LoRA hooks act as in sampling.
    """

    def __init__(self, guider, model_options: dict, differentiable: Differentiable):
        self._model, self._conds, self._options = guider.inner_model, guider.conds, model_options
        self._gradient_options, self._differentiable = gradient_options(model_options), differentiable

    def embedding(self, batch: int) -> Tensor:
        """The negative's (batch, tokens, channels), float32; ValueError where the model does not use it as given."""
        (entry,) = self._conds["negative"]
        context, given = entry["model_conds"].get("c_crossattn"), entry.get("cross_attn")
        if context is None or given is None or not same(context.cond, given):
            raise ValueError(
                f"{type(self._model).__name__} does not use its text embedding as it is given, so there is nothing to "
                "optimise; models of the SD1.x, SD2.x, SDXL and SD3 kind work"
            )
        given = given.to(self._differentiable.patcher.load_device, torch.float32)
        return given.repeat(batch // given.shape[0], 1, 1)

    def conditional(self, x: Tensor, sigma: float) -> Tensor:
        return self._predict(self._conds["positive"], x, sigma, self._options)

    def unconditional(self, x: Tensor, sigma: float, embedding: Tensor) -> Tensor:
        """To be called inside `gradients`."""
        (entry,) = self._conds["negative"]
        context = entry["model_conds"]["c_crossattn"]._copy_with(embedding)
        entry = {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": context}}
        return self._differentiable(lambda: self._predict([entry], x, sigma, self._gradient_options))

    def _predict(self, cond: list[dict], x: Tensor, sigma: float, options: dict) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        sigmas = x.new_full((x.shape[0],), sigma)
        return comfy.samplers.calc_cond_batch(self._model, [cond], x, sigmas, options)[0]


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a))


class _WithBranches(comfy.samplers.Sampler):
    """Not a sampler, but what to do where the host samples: with models loaded and conditionings processed."""

    def __init__(self, work: Callable[[Branches], None], differentiable: Differentiable):
        self.work, self.differentiable = work, differentiable

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        self.work(Branches(model_wrap, extra_args["model_options"], self.differentiable))
        return latent_image


def with_branches(model, positive, negative, inversion: Inversion, work: Callable[[Branches], None]) -> None:
    """Calls `work` once, inside a run of the host on the model and the two conditionings; the model stays as it is."""
    differentiable = Differentiable(model)
    guider = comfy.samplers.CFGGuider(differentiable.patcher)
    guider.set_conds(positive, negative)
    # the models' own preparation looks at the latent (inpainting models take the picture from it)
    source = model.model.process_latent_out(inversion.latents[-1])
    guider.sample(
        torch.zeros_like(source), source, _WithBranches(work, differentiable), torch.tensor(inversion.sigmas),
        disable_pbar=True, seed=0,
    )  # fmt: skip


def check_inversion_fits(inversion: Inversion, model) -> None:
    """ValueError for an inversion that this model cannot have made, or that holds what is not a number."""
    made_for, format_name = inversion.latent_format, type(model.model.latent_format).__name__
    law = noise_law(model.get_model_object("model_sampling"))
    if made_for != format_name or inversion.law != law:
        raise ValueError(
            f"the inversion is of a {inversion.law.name} model with {made_for} latents, and this model is a "
            f"{law.name} one with {format_name} latents; use the model that it was made with"
        )
    descending(inversion.sigmas)
    if len(inversion.latents) != len(inversion.sigmas):
        raise ValueError(f"the inversion holds {len(inversion.latents)} latents for {len(inversion.sigmas)} sigmas")
    if not all(torch.isfinite(latent).all() for latent in inversion.latents):
        raise ValueError("the inversion holds NaN or infinite values; invert again, at a higher precision")


def negative_takes_over(positive, negative) -> dict:
    """The options of a single negative, with the ControlNet that the host would lend it from the positive.

    The host lends it to the first entry of the negative only, which is not enough for one that has many.
    """
    options = dict(negative[0][1])
    lent = [given for _, given in positive if given.get("control_apply_to_uncond") and given.get("control") is not None]
    if lent and options.get("control") is None:
        options["control"] = lent[0]["control"]
    return options


def show_progress_text(text: str) -> None:
    """Shows a line on the node that is running, in the editor."""
    server, context = sys.modules.get("server"), get_executing_context()
    instance = getattr(server.PromptServer, "instance", None) if server and context else None
    if instance is not None:
        instance.send_progress_text(text, context.node_id)
