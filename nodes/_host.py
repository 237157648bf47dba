"""How the host runs samplers and guiders: its noise laws, latents and masks; only `_host*.py` read its internals."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import hypot

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import node_helpers
import torch
from comfy.model_sampling import CONST
from torch import Tensor
from tqdm.auto import tqdm

from ..samplers.batch import per_sample
from ..samplers.blended_diffusion import Blend
from ..samplers.core import Denoiser, SampleNoise, Step, descending
from ..samplers.ddim import ddim
from ..samplers.guidance import branch_weights, cfg_with_empty
from ..samplers.inversion import Inversion, invert, largest_error
from ..samplers.inversion_report import holds, report
from ..samplers.masks import composite, paints
from ..samplers.noise_law import Noise, NoiseLaw
from ..samplers.window import Window
from ._host_checks import (
    check_answer,
    check_every_call,
    check_given,
    check_own_masks,
    check_ready,
    errors_of,
    fitted_noise_mask,
)
from ._host_hooks import Keyframes
from ._host_shown import show_progress_text

log = logging.getLogger("steer")


def strength_sigma(model_sampling, strength: float) -> float:
    """The noise level at a strength, the share of diffusion time from 0 (clean) to 1 (all noise)."""
    # at percent 0 the host answers a placeholder far above the model's range
    return min(float(model_sampling.percent_to_sigma(1.0 - strength)), float(model_sampling.sigma_max))


def sigma_at(model) -> Callable[[float], float]:
    """The model's noise level at a share of the run: 0 is above all of them, 1 is 0."""
    return model.get_model_object("model_sampling").percent_to_sigma


def window_of(model, interval: tuple[float, float]) -> Window:
    """The window of a run of this model between two shares of it, both ends in it."""
    return Window(*map(sigma_at(model), interval))


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


class InvertedSeed(int):
    """The seed of a NOISE that was not drawn: a run starts where it leads to from the whole source."""


class InvertedNoise:
    """A host NOISE that makes sampling start exactly at an inverted latent, from the LATENT it was given out with."""

    seed = InvertedSeed(0)

    def __init__(self, noise: Tensor):
        self._noise = noise

    def generate_noise(self, input_latent: dict) -> Tensor:
        shape = tuple(input_latent["samples"].shape)
        if shape != tuple(self._noise.shape):
            raise ValueError(
                f"SteerDDIMInversion: the inverted noise is for a latent of shape {tuple(self._noise.shape)}, not "
                f"{shape}; connect the LATENT of the same inversion"
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
    # where runs end, since a GPU divides otherwise: so a run that keeps the source gives these very numbers
    samples = latent_format.process_out(inversion.latents[-1].to(comfy.model_management.get_torch_device())).cpu()
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
        model_wrap = CheckedGuider(self.node, model_wrap)
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, None, needs_mask=False)
            check_every_call(extra_args["model_options"])
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
        keyframes = Keyframes(model_wrap, extra_args["model_options"], run.sigmas)
        denoise, total = denoiser(model_wrap, extra_args, keyframes), count * (2 if self.check else 1)
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
        steady = holds(self.inversion, levels, errors) or answers_alike(denoise, level.x, run.sigmas[0])
        keyframes.leave()
        guidance = guidance_of(model_wrap, extra_args["model_options"])
        self.report = report(self.inversion, levels, errors, self.tolerance, guidance, steady)
        return latent_image


def answers_alike(denoise: Denoiser, x: Tensor, sigma: float) -> bool:
    """Whether the same latent gets the same answer twice, up to a GPU's rounding."""
    first, second = (denoise(x, sigma) for _ in range(2))
    return bool((second - first).abs().max() <= 1e-3 * first.abs().max())


def guidance_of(guider, model_options: dict) -> str:
    """What a run does beside predicting by one prompt, for a report; "" where it does nothing, as at cfg 1."""
    while isinstance(guider, CheckedGuider):
        guider = guider._guider
    kind = type(guider)
    if kind is not SteerCFG and getattr(kind, "predict_noise", None) is not comfy.samplers.CFGGuider.predict_noise:
        return f"the guider ({kind.__name__}) guides in a way of its own"
    if guider.cfg > 1.0:
        return f"the guider is at cfg {guider.cfg:g}"
    if "empty" in guider.conds and guider.negative_scale > 0.0:
        return f"the guider is at negative_scale {guider.negative_scale:g}"
    return "a patch on the model changes guidance" if read_by_patches(model_options) else ""


def read_by_patches(model_options: dict) -> bool:
    """Whether a patch reads the predictions, so that one that weighs nothing is needed all the same."""
    needed = "disable_cfg1_optimization", *(f"sampler_{hook}cfg_function" for hook in ("pre_", "post_", ""))
    return any(map(model_options.get, needed))


def tell_places(model_options: dict) -> bool:
    """Whether patches of the model may tell a positive, 0, from a negative, 1, by their places in a call."""
    return bool(model_options.get("transformer_options", {}).keys() & {"patches", "patches_replace"})


def masks_itself(sampler) -> bool:
    """Whether a SAMPLER, or one that it is round, keeps the masked-out part itself."""
    return getattr(sampler, "needs_mask", False) or (hasattr(sampler, "sampler") and masks_itself(sampler.sampler))


class SteerCFG(comfy.samplers.CFGGuider):
    """The host's CFGGuider with an interval, a third conditioning, and its input checked before anything runs."""

    fits_masks = True

    def __init__(self, node: str, model, cfg: float, negative_scale: float, interval: tuple[float, float]):
        super().__init__(model)
        self.node, self.cfg, self.negative_scale = node, cfg, negative_scale
        self.window = window_of(model, interval)

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
            denoise_mask = fitted_noise_mask(denoise_mask, latent_image)
        changed = "denoise_mask_function" in self.model_options or masks_itself(sampler)
        if denoise_mask is not None and not denoise_mask.is_nested and not changed:
            tell_empty(self.node, "noise mask", denoise_mask, "the picture stays as it is")
        sampler = CheckedSampler(self.node, sampler)
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # samplers with several calls in a step are stopped by the host between steps only
        comfy.model_management.throw_exception_if_processing_interrupted()
        positive, negative, empty = (self.conds.get(name) for name in ("positive", "negative", "empty"))
        inside = float(timestep.max()) in self.window
        if inside and empty is not None and self.negative_scale:
            return self._three_terms([positive, empty], negative, x, timestep, model_options)
        # at cfg 1 the host leaves the unconditional out, unless a patch or a CFG++ sampler asked for it
        cfg, unconditional = self.cfg if inside else 1.0, negative if empty is None else empty
        if cfg == 0.0 and not read_by_patches(model_options):
            positive = None
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, unconditional, positive, cfg, model_options=model_options, seed=seed
        )

    def _three_terms(self, pair, negative, x, timestep, model_options):
        """The host's guidance by the pair, positive and empty, and the negative's term besides.

        Who reads predictions sees the pair's: the empty's is the unconditional one, with which CFG++ samplers renoise
        (Chung et al. 2024, arXiv:2406.08070), and that by which patches tell what the positive adds.
        """
        if not read_by_patches(model_options):
            weights = branch_weights(self.cfg, self.negative_scale)[::2]
            pair = [cond if weight else None for cond, weight in zip(pair, weights, strict=True)]
        args = {"input": x, "sigma": timestep, "model": self.inner_model, "model_options": model_options}
        calculate = model_options.get("sampler_calc_cond_batch_function")

        def predictions(conds: list) -> list[Tensor]:
            if calculate is not None:
                return calculate({**args, "conds": conds})
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)

        if calculate is not None or tell_places(model_options):  # they have nothing for a third
            against = predictions([None, negative])[1]
            out = predictions(pair)
        else:
            *out, against = predictions([*pair, negative])
        args.update(conds=pair, cond_scale=self.cfg, timestep=timestep)
        for patch in model_options.get("sampler_pre_cfg_function", []):
            out = patch({**args, "conds_out": out})
        denoised = cfg_with_empty(out[0], against, out[1], self.cfg, self.negative_scale)
        args.update(cond=pair[0], uncond=pair[1], cond_denoised=out[0], uncond_denoised=out[1])
        for patch in model_options.get("sampler_post_cfg_function", []):
            denoised = patch({**args, "denoised": denoised})
        return denoised


def check_inversion_fits(inversion: Inversion, model) -> None:
    """ValueError for an inversion that this model cannot have made."""
    made_for, format_name = inversion.latent_format, type(model.get_model_object("latent_format")).__name__
    law = noise_law(model.get_model_object("model_sampling"))
    if made_for != format_name or inversion.law != law:
        raise ValueError(
            f"the inversion is of a {inversion.law.name} model with {made_for} latents, and this model is a "
            f"{law.name} one with {format_name} latents; use the model that it was made with"
        )


def tell(node: str, text: str) -> None:
    """A warning in the log and, in the editor, on the node that is running."""
    log.warning("%s: %s", node, text)
    show_progress_text(f"{node}: {text}")


def tell_empty(node: str, name: str, masks: Tensor, outcome: str) -> bool:
    """Whether all of a batch of masks (batch, ...) are empty; tells which are, and what comes of it."""
    text = empty_of(name, masks, outcome)
    if text:
        tell(node, text)
    return not any(map(paints, masks))


def empty_of(name: str, masks: Tensor, outcome: str) -> str:
    """Which of a batch of masks (batch, ...) are empty, and what comes of it; nothing where none is."""
    empty = [str(number) for number, mask in enumerate(masks, 1) if not paints(mask)]
    if len(empty) == len(masks):
        return f"the {name} is empty (0 everywhere): {outcome}"
    if not empty:
        return ""
    return f"{name} {', '.join(empty)} of {len(masks)} is empty (0 everywhere): there {outcome}"
