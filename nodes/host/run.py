"""A run of the host as a method sees it, with verbs.

A method is a function of a `Run` that returns the latents at the last sigma. It stands where the host samples: models
are loaded, conditionings are processed, and the latent is in the model's scale.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.batch import per_sample
from ...samplers.core import HeldNoise, SampleNoise, Step, descending
from ...samplers.masks import composite
from ...samplers.noise_law import Noise, NoiseLaw
from .checks import check_answer, check_every_call, check_no_momentum, check_ready
from .errors import errors_of
from .guiders import CheckedGuider, GuidedGuider, ToldGuider, is_told_mask, patches_read_order, without_cfg
from .inverted import InvertedSeed, noise_to
from .keyframes import Keyframes
from .law import noise_law
from .masks import check_masked_run, check_source
from .progress import tell_empty

FREE = 1.5
"""How many times the memory that the host reckons for a call has to be free, as where the host batches prompts."""


class Showable(Protocol):
    """A step or a level, of which the bar shows the estimate."""

    @property
    def x(self) -> Tensor: ...

    @property
    def denoised(self) -> Tensor: ...


Shown = TypeVar("Shown", bound=Showable)


class SamplerCall(NamedTuple):
    """What the host calls a SAMPLER with, in its order."""

    guider: Any
    sigmas: Tensor
    extra_args: dict
    callback: Callable | None
    noise: Tensor
    latent_image: Tensor
    denoise_mask: Tensor | None
    disable_pbar: bool


class Run:
    """A run of the host in the terms of the mathematics: its checked inputs, and what a method can do.

    Latents are (batch, channels, [frames,] height, width), in the model's scale.
    """

    def __init__(self, node: str, call: SamplerCall, masks_itself: bool, mask_needed: bool = True):
        self.node, self._call, self._masks_itself = node, call, masks_itself
        self.guider = CheckedGuider(node, call.guider)
        self.model = self.guider.inner_model
        self.options: dict = call.extra_args["model_options"]
        self.seed = call.extra_args.get("seed")
        self.start_noise, self.known = call.noise, call.latent_image
        """`known` is the source latent; `start_noise` is what comes on the noise wire."""
        self.mask: Tensor | None = call.denoise_mask
        self._draws: list[HeldNoise] | None = None
        with self.errors():
            check_ready(self.guider, call.sigmas, self.known, self.start_noise, self.mask)
            if masks_itself and (mask_needed or self.mask is not None):
                check_masked_run(self.guider, self.mask, self.options)
        self._told: ToldGuider | None = None
        if self.mask is not None and is_told_mask(self.guider):
            self._told = ToldGuider(self.guider, self.mask, self.known)
            self.guider = self._told if masks_itself else self.guider

    def errors(self) -> AbstractContextManager:
        """Puts the node's name before ValueErrors."""
        return errors_of(self.node)

    @property
    def noise_mask(self) -> Tensor:
        """The mask of a method that masks itself; its runs all have one."""
        assert self.mask is not None
        return self.mask

    def under(self, node: str, mask: Tensor | None = None) -> "Run":
        """The same run in another node's name and with that node's mask, fitted as the host fits noise masks."""
        part, noise = copy(self), self.start_noise
        if mask is not None:
            mask = comfy.sampler_helpers.prepare_mask(mask, noise.shape, noise.device)[:, :1].float()
        part.node, part.mask = node, mask
        return part

    def holding(self, draws: list[HeldNoise]) -> "Run":
        """The same run, whose streams of noise repeat what they gave until they are released; `draws` gets them."""
        part = copy(self)
        part._draws = draws
        return part

    def of(self, latent: Tensor) -> "Run":
        """The same run as one of another source latent: what is drawn and judged in it is of that one."""
        part = copy(self)
        part.known, part.start_noise = latent, torch.zeros_like(latent)
        vars(part).pop("start", None)
        return part

    @cached_property
    def sigmas(self) -> list[float]:
        """The levels, descending; ValueError for others."""
        with self.errors():
            return descending(self._call.sigmas.tolist())

    @cached_property
    def law(self) -> NoiseLaw:
        """ValueError for a model that is sampled by none that Steer knows."""
        with self.errors():
            return noise_law(self.model.model_sampling)

    def check(self) -> None:
        """ValueError unless the sigmas descend and the model has a noise law that Steer knows."""
        _ = self.sigmas, self.law

    @property
    def levels(self) -> list[float]:
        """The sigmas as they were given, descending or not."""
        return self._call.sigmas.tolist()

    @cached_property
    def from_top(self) -> bool:
        """Whether the run starts at the model's highest level, where the host adds noise in its own way."""
        return comfy.samplers.Sampler().max_denoise(self.guider, self._call.sigmas)

    @cached_property
    def start(self) -> Tensor:
        """What `start_noise` is added to at the first sigma: the source, from the top without what the mask covers."""
        masked = self._masks_itself and self.mask is not None
        whole = not masked or not self.from_top or isinstance(self.seed, InvertedSeed)
        return self.known if whole else without_hole(self.known, self.noise_mask, self.start_noise)

    def begin(self) -> Tensor:
        """x at the first sigma."""
        sigma = self._call.sigmas[0]
        return self.model.model_sampling.noise_scaling(sigma, self.start_noise, self.start, self.from_top)

    def noise(self, stream: str) -> Noise:
        """Fresh noise of this run, per sample; streams of different names are independent."""
        halves = self.guider.halves
        size = self.known.shape[0] // halves
        drawn = SampleNoise(self.seed or 0, stream, self.start_noise[:size], self.start[:size])
        noise = lambda like: torch.cat([drawn(like[:size])] * halves)  # noqa: E731
        if self._draws is None:
            return noise
        self._draws.append(HeldNoise(noise))
        return self._draws[-1]

    def check_every_call(self) -> None:
        """ValueError for a model that answers some calls from earlier ones."""
        with self.errors():
            check_every_call(self.options)

    def check_fresh_noise(self) -> None:
        """ValueError for a model whose patches take it that a call goes on from the one before."""
        self.check_every_call()
        with self.errors():
            check_no_momentum(self.options)

    def check_source(self) -> None:
        """ValueError for a source that is to be kept in part, and comes noised."""
        with self.errors():
            check_source(self.sigmas[0], self.known, self.noise_mask, self.start_noise)

    def nothing_to_do(self) -> bool:
        """Whether no model call is needed, since the noise mask is empty; says so, and which masks of a batch are."""
        size = self.known.shape[0] // self.guider.halves
        empty = tell_empty(self.node, "noise mask", self.noise_mask[:size], "the picture stays as it is")
        return empty and not self.guider.watched

    @property
    def patches_read_order(self) -> bool:
        """Whether patches may read which places of a call are of the positive (0) and the negative (1)."""
        return patches_read_order(self.options)

    @cached_property
    def keyframes(self) -> Keyframes:
        return Keyframes(self.guider, self.options, self.sigmas)

    @cached_property
    def _masked(self) -> Callable:
        """The guider as the host masks it for its own samplers."""
        if self._masks_itself or self.mask is None:
            return self.guider
        masked = comfy.samplers.KSamplerX0Inpaint(self.guider, self._call.sigmas)
        masked.latent_image, masked.noise = self.known, self.start_noise
        return lambda *args, **kwargs: masked(*args, denoise_mask=self.mask, **kwargs)

    def denoise(self, x: Tensor, sigma: float, options: dict | None = None) -> Tensor:
        """The guider's estimate, masked by the host unless the method masks; an interrupt stops it before."""
        return self._estimate(x, sigma, self._call.extra_args | ({"model_options": options} if options else {}))

    def unguided(self, x: Tensor, sigma: float) -> Tensor:
        """The same without the host's classifier-free guidance, and without the negative's rows in the call."""
        return self._estimate(x, sigma, self._call.extra_args | {"model_options": without_cfg(self.options)})

    def _estimate(self, x: Tensor, sigma: float, extra_args: dict) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.keyframes.go_to(sigma)
        return self._masked(x, x.new_full((x.shape[0],), sigma), **extra_args)

    def predict(self, conds: list[list[dict] | None], x: Tensor, sigma: float, options: dict | None = None) -> list:
        """The model's estimates under processed conditionings, unguided; a None only keeps a place in the call."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        level = x.new_full((x.shape[0],), sigma)
        x = x if self._told is None else self._told.shown(x, level)
        return comfy.samplers.calc_cond_batch(self.model, conds, x, level, options or self.options)

    def at_once(self, wanted: int, rows: int) -> int:
        """How many copies of the batch, each `rows` times, one call has memory for: from 1 to `wanted`."""
        free = getattr(self.model.current_patcher, "get_free_memory", comfy.model_management.get_free_memory)
        room, (size, *shape) = free(self.known.device) / FREE, self.known.shape
        fitting = (n for n in range(wanted, 1, -1) if self.model.memory_required([rows * n * size, *shape]) < room)
        return next(fitting, 1)

    def check_answer(self, x: Tensor, denoised: Tensor, sigma: float) -> None:
        """ValueError for an estimate with NaN or infinite values."""
        with self.errors():
            check_answer(x, denoised, x.new_tensor(sigma))

    def sample(self, sampler, change: Callable | None = None, x: Tensor | None = None, **declared) -> Tensor:
        """Another SAMPLER's result, in the host's scale; `change(denoise, x, sigma)` answers each of its calls.

        `denoise` is a `guiders.Call`. With x the sampler starts there; `declared` is of `WrappedGuider`. The sampler
        sees no mask where the method masks.
        """
        guider = self.guider if change is None else GuidedGuider(self.guider, change, **declared)
        noise, start, mask = self.start_noise, self.start, None if self._masks_itself else self.mask
        if x is not None:
            start = self.known
            noise = noise_to(x, start, self.sigmas[0], self.law, self.from_top)
        _, sigmas, extra_args, callback, *_, quiet = self._call
        # a copy of the sigmas: uni_pc writes into them
        return sampler.sample(guider, sigmas.clone(), extra_args, callback, noise, start, mask, quiet)

    def scaled(self, samples: Tensor) -> Tensor:
        """Another sampler's result in the law's scale: the host divides a flow model's by alpha of the last sigma."""
        return samples * self.law.alpha(self.levels[-1])

    def result(self, x: Tensor) -> Tensor:
        """x at the last sigma in the host's scale."""
        return self.model.model_sampling.inverse_noise_scaling(self._call.sigmas[-1], x)

    def walk(self, steps: Callable[[Tensor], Iterator[Step]], calls: int | None = None) -> Tensor:
        """The result of a generator that starts from x at the first sigma and calls the model `calls` times.

        Without `calls` once a step; with more there are several calls at a level, which not every patch takes.
        """
        total = calls or len(self.sigmas) - 1
        self._check_walk(total)
        if self._masks_itself and self.mask is not None and self.nothing_to_do():
            return self.known
        x = self.begin()
        for step in self.shown(steps(x), total):
            x = step.x
        return self.result(x)

    def _check_walk(self, total: int) -> None:
        """Everything that can be refused before the first model call."""
        self.check()
        if self._masks_itself and self.mask is not None:
            self.check_source()
        if total > len(self.sigmas) - 1:
            self.check_every_call()

    def shown(self, steps: Iterator[Shown], total: int, first: int = 0, of: int | None = None) -> Iterator[Shown]:
        """The steps, each of which moves the bar and shows a preview: number `first` and on, of `of`."""
        for index, step in enumerate(tqdm(steps, total=total, disable=self._call.disable_pbar)):
            yield step
            self.show(first + index, step.denoised, step.x, of or total)

    def show(self, index: int, denoised: Tensor, x: Tensor, total: int) -> None:
        """Moves the bar and shows the estimate."""
        if self._call.callback is not None:
            self._call.callback(index, denoised, x, total)


def without_hole(latent: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """The source without what lies under the mask, for a start from noise alone; a soft edge keeps its share.

    As RePaint's `x_T`. Blended Diffusion is published with the noised source there, and its result follows what lies
    under the mask. A sample without noise is itself what the run starts from, and stays.
    """
    drawn = per_sample(noise.flatten(1).any(1), noise)
    return torch.where(drawn, composite(torch.zeros_like(latent), latent, mask), latent)
