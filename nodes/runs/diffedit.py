"""DiffEdit's contrast of two prompts, in a run of the host that calls the model at one level."""

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.diffedit import contrast, draws, found
from ...samplers.masks import check_mask
from ..host.checks import check_answer, check_every_call, check_given, errors_of, fitted_noise_mask
from ..host.conditioning import check_active, equal
from ..host.guider import tell_places
from ..host.law import noise_law, strength_sigma
from ..host.run import checked_run

FREE = 1.5  # times what the host reckons a call takes has to be free, as where it batches conditionings itself


class ContrastSampler(comfy.samplers.Sampler):
    """Not a sampler, but what to do where the host samples. Made for one run, which leaves `mask` and `heat`.

    Both are (batch, ...) without channels, on the CPU.
    """

    def __init__(self, node: str, samples: int, threshold: float):
        self.node, self.samples, self.threshold = node, samples, threshold
        self.mask: Tensor | None = None
        self.heat: Tensor | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model, prompts, done = model_wrap.inner_model, [model_wrap.conds[name] for name in ("source", "target")], 0
        with errors_of(self.node):
            run = checked_run(model_wrap, sigmas, extra_args, noise, latent_image, None, needs_mask=False)
            check_every_call(extra_args["model_options"])
            check_active(model_wrap.conds, run.sigmas[0])
        noises = draws(extra_args["seed"], self.samples, run.known)
        together = draws_at_once(model, run.known.shape, self.samples, run.known.device)

        def estimates(x: Tensor, sigma: float) -> list[Tensor]:
            nonlocal done
            comfy.model_management.throw_exception_if_processing_interrupted()
            level, batch = x.new_full((x.shape[0],), sigma), run.known.shape[0]
            options = extra_args["model_options"]
            calls = [[prompt] for prompt in prompts] if tell_places(options) else [prompts]  # both are positives
            both = [out for call in calls for out in comfy.samplers.calc_cond_batch(model, call, x, level, options)]
            for out in both:
                with errors_of(self.node):
                    check_answer(x, out, level)
            done += x.shape[0] // batch
            callback(done - 1, both[1][:batch], x[:batch], self.samples)
            return both

        difference = contrast(estimates, run.known, run.sigmas[0], run.law, noises, together)
        within = None if denoise_mask is None else denoise_mask[:, 0]
        self.mask, self.heat = (each.cpu() for each in found(difference, self.threshold, within))
        return latent_image


def contrasted(node: str, model, source, target, latent: dict, samples: Tensor, settings, callback, quiet: bool):
    """(mask, heat), both (batch, ...): where the two prompts disagree about the latent `samples`. ValueError.

    `settings`: (strength, number of draws, threshold, seed). Equal prompts are not run, nor what is all masked out. The
    third of what comes back, (batch,), is False for a latent whose noise mask is empty.
    """
    strength, count, threshold, seed = settings
    model_sampling, given = model.get_model_object("model_sampling"), latent.get("noise_mask")
    sigmas = torch.tensor([strength_sigma(model_sampling, strength), 0.0])
    with errors_of(node):
        if samples.ndim < 4:
            raise ValueError(f"latent_image has {samples.ndim - 2} dimensions; encode a picture or a video")
        check_given(model.model, sigmas, samples, given)
        noise_law(model_sampling)
        if not samples.any():
            raise ValueError("latent_image is empty (all zero); encode the picture to edit")
        looked = torch.ones(len(samples), dtype=torch.bool)
        if given is not None:
            check_mask(given)
            given = fitted_noise_mask(given, samples)
            looked = given.flatten(1).any(1).cpu().repeat(len(samples) // len(given))
    if equal(source, target) or not looked.any():
        nothing = torch.zeros(samples.shape[0], *samples.shape[2:])
        return nothing, nothing, looked
    guider, sampler = comfy.samplers.CFGGuider(model), ContrastSampler(node, count, threshold)
    guider.inner_set_conds({"source": source, "target": target})
    guider.sample(torch.zeros_like(samples), samples, sampler, sigmas, given, callback, quiet, seed)
    return sampler.mask, sampler.heat, looked


def draws_at_once(model, shape, samples: int, device) -> int:
    """How many draws, each of the whole batch under both prompts, fit into the memory that is free; at least one."""
    free = getattr(model.current_patcher, "get_free_memory", comfy.model_management.get_free_memory)(device)
    fitting = (n for n in range(samples, 1, -1) if FREE * model.memory_required([2 * n * shape[0], *shape[1:]]) < free)
    return next(fitting, 1)


def pixels_of(model) -> int:
    """Picture pixels to a latent pixel."""
    return getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
