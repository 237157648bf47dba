"""How the host runs samplers: what a method is given there, checked, and the way back to the host's scale."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.batch import per_sample
from ...samplers.blended_diffusion import Blend
from ...samplers.core import Denoiser, SampleNoise, Step, descending
from ...samplers.masks import composite
from ...samplers.noise_law import Noise, NoiseLaw
from .checks import check_answer, check_every_call, check_own_masks, check_ready, errors_of
from .keyframes import Keyframes
from .law import noise_law
from .progress import tell_empty


class WrappedGuider:
    """A guider as samplers use it, for one run; what a child does not change is the guider's."""

    def __init__(self, guider):
        self._guider = guider

    def __getattr__(self, name):
        return getattr(self._guider, name)


class CheckedGuider(WrappedGuider):
    """A guider whose predictions are looked at: one that holds NaN ends the run, in this node's name."""

    def __init__(self, node: str, guider):
        super().__init__(guider)
        self._node = node

    def __call__(self, x, sigma, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        denoised = self._guider(x, sigma, model_options=model_options, seed=seed)
        with errors_of(self._node):
            check_answer(x, denoised, sigma)
        return denoised


def masks_itself(sampler) -> bool:
    """Whether a SAMPLER, or one that it is round, keeps the masked-out part itself."""
    return getattr(sampler, "needs_mask", False) or (hasattr(sampler, "sampler") and masks_itself(sampler.sampler))


class InvertedSeed(int):
    """The seed of a NOISE that was not drawn: a run starts where it leads to from the whole source."""


@dataclass(frozen=True)
class Run:
    """What a sampler was given, checked, in the terms of the math. `known` is the source latent (model space)."""

    sigmas: list[float]
    law: NoiseLaw
    known: Tensor
    mask: Tensor | None
    seed: int
    start_noise: Tensor
    start: Tensor
    """What `start_noise` is added to at the first sigma: the source, or what of it counts there (model space)."""
    lockstep: int = 1
    """How many equal parts of the batch are to get the same noise."""
    watched: bool = False
    """Whether the model's calls are wanted even if they change nothing (its attention is recorded)."""

    def noise(self, stream: str) -> Noise:
        """Fresh noise of this run, per sample; streams of different names are independent."""
        size = self.known.shape[0] // self.lockstep
        drawn = SampleNoise(self.seed, stream, self.start_noise[:size], self.start[:size])
        return lambda like: torch.cat([drawn(like[:size])] * self.lockstep)

    def nothing_to_do(self, node: str) -> bool:
        """Whether no model call is needed, since the noise mask is empty; says so, and which masks of a batch are."""
        size = self.known.shape[0] // self.lockstep
        return tell_empty(node, "noise mask", self.mask[:size], "the picture stays as it is") and not self.watched


def checked_run(
    guider, sigmas: Tensor, extra_args: dict, noise: Tensor, latent: Tensor, mask: Tensor | None, needs_mask: bool
) -> Run:
    """The run, after everything that can be checked before the first model call. Raises ValueError."""
    model = guider.inner_model
    check_ready(guider, sigmas, latent, noise, mask)
    if needs_mask:
        if mask is None:
            raise ValueError(
                "latent_image has no noise mask, so there is nothing to keep; "
                "put 'Set Latent Noise Mask' between the VAE encode and the sampler"
            )
        check_own_masks(guider, mask)
        if "denoise_mask_function" in extra_args["model_options"]:
            raise ValueError(
                "the model changes the mask at each step (Differential Diffusion), which this sampler does not follow; "
                "remove that patch, or use it with SteerDDIMSampler or a sampler of the host"
            )
    seed, start = extra_args.get("seed"), latent
    if needs_mask and comfy.samplers.Sampler().max_denoise(guider, sigmas) and not isinstance(seed, InvertedSeed):
        start = without_hole(latent, mask, noise)
    levels, law = descending(sigmas.tolist()), noise_law(model.model_sampling)
    lockstep, watched = getattr(guider, "lockstep", 1), getattr(guider, "watched", False)
    return Run(levels, law, latent, mask, seed or 0, noise, start, lockstep, watched)


def without_hole(latent: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """The source without what lies under the mask, for a start from noise alone; a soft edge keeps its share.

    As RePaint's `x_T`. Blended Diffusion is published with the noised source there, and its result follows what lies
    under the mask. A sample without noise is itself what the run starts from, and stays.
    """
    drawn = per_sample(noise.flatten(1).any(1), noise)
    return torch.where(drawn, composite(torch.zeros_like(latent), latent, mask), latent)


def check_source(run: Run) -> None:
    """ValueError for a latent that comes without noise and is to be kept in part: it is not the source, but noised."""
    mask = run.mask.expand_as(run.known).flatten(1)
    parted = (mask > 0.0).any(1) & (mask < 1.0 - 1e-4).any(1)
    if (parted & ~run.start_noise.flatten(1).any(1)).any():
        raise ValueError(
            f"latent_image comes without noise (Disable Noise) at sigma {run.sigmas[0]:.4g}, so it is that of a run "
            "that was stopped there, and not the picture to keep where the mask is 0; sample all sigmas in one run, "
            "or, to go on with another model, connect the first run's denoised_output here and RandomNoise as noise"
        )


def denoiser(guider, extra_args: dict, keyframes: Keyframes, **also) -> Denoiser:
    """The guider, or what the host wraps round it, as the math calls it; an interrupt stops it before the next call."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        keyframes.go_to(sigma)
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
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask, self.needs_mask)
            if self.needs_mask:
                check_source(run)
            count = len(run.sigmas) - 1
            total = self.calls(count)
            if total > count:  # it goes back up
                check_every_call(extra_args["model_options"])
        if self.needs_mask and run.nothing_to_do(self.node):
            return latent_image
        model_sampling = model_wrap.inner_model.model_sampling
        x = model_sampling.noise_scaling(sigmas[0], noise, run.start, self.max_denoise(model_wrap, sigmas))
        masked = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        masked.latent_image, masked.noise = latent_image, noise
        keyframes = Keyframes(model_wrap, extra_args["model_options"], run.sigmas)
        denoise = denoiser(masked, extra_args, keyframes, denoise_mask=None if self.needs_mask else denoise_mask)
        for index, step in enumerate(tqdm(self.steps(denoise, x, run), total=total, disable=disable_pbar)):
            x = step.x
            if callback is not None:
                callback(index, step.denoised, step.x, total)
        return model_sampling.inverse_noise_scaling(sigmas[-1], x)


class CheckedSampler(comfy.samplers.Sampler):
    """Another SAMPLER, after a look at what it is given, and with one at each prediction."""

    def __init__(self, node: str, sampler: comfy.samplers.Sampler):
        self.node, self.sampler = node, sampler

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            check_ready(model_wrap, sigmas, latent_image, noise, denoise_mask)
        # a copy of the sigmas, here and wherever a sampler calls another: uni_pc writes into them
        return self.sampler.sample(
            model_wrap, sigmas.clone(), extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        )


class BlendedSampler(comfy.samplers.Sampler):
    """Blended Latent Diffusion around another SAMPLER, which sees a guider that blends and no mask of its own."""

    needs_mask = True

    def __init__(self, node: str, sampler: comfy.samplers.Sampler, dilation: int):
        self.node, self.sampler, self.dilation = node, sampler, dilation

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask, needs_mask=True)
            check_source(run)
        if run.nothing_to_do(self.node):
            return latent_image
        blend = Blend(run.sigmas, run.law, run.known, run.mask, run.noise("known"), self.dilation)
        guider = BlendedGuider(model_wrap, blend)
        samples = self.sampler.sample(
            guider, sigmas.clone(), extra_args, callback, noise, run.start, None, disable_pbar
        )
        # the inner sampler's result has been taken out of the flow law's scale; the source has to go the same way
        x = blend.finish(samples * run.law.alpha(run.sigmas[-1]))
        return model_wrap.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], x)


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
