"""DiffEdit's contrast of two prompts, in a run of the host that calls the model at one level."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ...samplers.diffedit import contrast, draws, mask_from
from ...samplers.masks import check_mask
from ..host import Run, RunSampler, checks, conditioning, law, masks, plain_guider


@dataclass(frozen=True)
class Settings:
    """How DiffEdit looks: at which strength, with how many noises, for what share of the contrast, from which seed."""

    strength: float
    samples: int
    threshold: float
    seed: int


@dataclass
class Contrasting:
    """The method of one run at one level, which leaves the mask and the heat, (batch, ...), on the CPU.

    The run's guider has the conditionings `source` and `target`.
    """

    settings: Settings
    mask: Tensor = field(init=False)
    heat: Tensor = field(init=False)

    def __call__(self, run: Run) -> Tensor:
        conds, sigma, batch, done = run.guider.conds, run.sigmas[0], len(run.known), 0
        run.check_every_call()
        with run.errors():
            conditioning.check_active(conds, sigma)
        prompts = [conds["source"], conds["target"]]
        # both are positives: where patches ask which place of a call is the positive's, each prompt gets its own call
        calls = [[prompt] for prompt in prompts] if run.patches_read_order else [prompts]

        def estimates(x: Tensor, sigma: float) -> list[Tensor]:
            nonlocal done
            both = [out for call in calls for out in run.predict(call, x, sigma)]
            for out in both:
                run.check_answer(x, out, sigma)
            done += len(x) // batch
            run.show(done - 1, both[1][:batch], x[:batch], self.settings.samples)
            return both

        noises = draws(self.settings.seed, self.settings.samples, run.known)
        together = run.at_once(self.settings.samples, 2)  # each draw under both prompts
        difference = contrast(estimates, run.known, sigma, run.law, noises, together)
        within = None if run.mask is None else run.mask[:, 0]
        self.mask, self.heat = (values.cpu() for values in mask_from(difference, self.settings.threshold, within))
        return run.known


class Contrast(NamedTuple):
    """Where two prompts disagree about latents: (batch, [frames,] height, width) twice, and (batch,)."""

    mask: Tensor
    heat: Tensor
    looked: Tensor
    """False for a latent whose noise mask is empty."""


def contrast_of(node: str, model, conds: dict, samples: Tensor, mask: Tensor | None, settings: Settings, **options):
    """The `Contrast` of the conditionings `source` and `target` about latents; ValueError where there can be none.

    Equal prompts and empty noise masks take no model call. `options` go to the guider's `sample`.
    """
    sigmas = torch.tensor([law.strength_sigma(model, settings.strength), 0.0])
    if samples.ndim < 4:
        raise ValueError(f"latent_image has {samples.ndim - 2} dimensions; encode a picture or a video")
    checks.check_given(model.model, sigmas, samples, mask)
    law.noise_law(model.get_model_object("model_sampling"))
    if not samples.any():
        raise ValueError("latent_image is empty (all zero); encode the picture to edit")
    looked = torch.ones(len(samples), dtype=torch.bool)
    if mask is not None:
        check_mask(mask)
    mask = masks.fitted_noise_mask(mask, samples)
    if mask is not None:
        looked = mask.flatten(1).any(1).cpu().repeat(len(samples) // len(mask))
    if conditioning.equal(conds["source"], conds["target"]) or not looked.any():
        nothing = torch.zeros(samples.shape[0], *samples.shape[2:])
        return Contrast(nothing, nothing, looked)
    guider, method = plain_guider(model, conds), Contrasting(settings)
    RunSampler(node, method).run_once(guider, sigmas, samples, denoise_mask=mask, seed=settings.seed, **options)
    return Contrast(method.mask, method.heat, looked)


def pixels_of(model) -> int:
    """How many pixels of the picture one side of a latent pixel spans."""
    return getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
