"""Source and target sampled in lockstep: one latent batch of both, one model call for both prompts, the same noise."""

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.same_noise import SameNoise
from .guider import RunGuider, SampleCall
from .guiders import Call
from .run import Run
from .sampler import RunSampler


def in_lockstep(run: Run, sampler, change: Callable[[Call, Tensor, float], Tensor]) -> Tensor:
    """`run.sample` of the doubled batch, in which both halves get the same noise, whoever draws it."""
    same_noise = SameNoise(run.start_noise.shape)

    def changed(denoise: Call, x: Tensor, sigma: float) -> Tensor:
        return change(denoise._replace(guider=Away(denoise.guider, same_noise)), x, sigma)

    with same_noise:
        return run.sample(sampler, changed, halves=2)


class Away:
    """A guider outside of `SameNoise`: what its own calls draw is drawn as always."""

    def __init__(self, guider, same_noise: SameNoise):
        self._guider, self._same_noise = guider, same_noise

    def __call__(self, *args, **kwargs) -> Tensor:
        with self._same_noise.away():
            return self._guider(*args, **kwargs)


class TwoPromptGuider(RunGuider, comfy.samplers.CFGGuider):
    """Samples two prompts in a batch of both from one latent, source first: the one that doubles what it is given."""

    def __init__(self, node: str, model):
        comfy.samplers.CFGGuider.__init__(self, model)
        self.node = node

    def conds_of(self, batch: int) -> dict[str, list]:
        """The conditionings of a run of so many pictures, by name; `positive` and `negative` are what they are."""
        raise NotImplementedError

    def method(self, sampler) -> Callable[[Run], Tensor]:
        """What a run with this SAMPLER does."""
        raise NotImplementedError

    def prepared(self, call: SampleCall) -> tuple[object, SampleCall]:
        if isinstance(call.sampler, RunSampler) and call.sampler.one_prompt:
            raise ValueError(
                "this guider samples two prompts; invert with a plain guider at cfg 1 and the source prompt"
            )
        batch, mask, guider = len(call.latent_image), call.denoise_mask, copy(self)
        guider.original_conds = {}
        guider.inner_set_conds(self.conds_of(batch))
        if mask is not None and mask.ndim > 2 and len(mask) == batch > 1:
            mask = torch.cat([mask, mask])
        sampler = RunSampler(self.node, self.method(call.sampler), call.sampler)
        noise, latent = (torch.cat([x, x]) for x in (call.noise, call.latent_image))
        return guider, call._replace(noise=noise, latent_image=latent, sampler=sampler, denoise_mask=mask)


class PairConds(NamedTuple):
    """Two prompts as one conditioning, source first, and what each is guided away from, apart and in one."""

    pair: list
    negatives: tuple[list | None, list | None]
    negative_pair: list | None = None


def guided_pair(model, conds: PairConds, scales: tuple[float, float], x: Tensor, timestep: Tensor, options: dict):
    """Both estimates, each at its scale: of one call, and where both are guided the unconditional ones of it too.

    Where one is guided, its unconditional estimate is of a call of its own: the other needs none. No patch of these
    options may have a part in guidance (`patches_guide`).
    """
    if 1.0 in scales:
        (cond,), unconds = comfy.samplers.calc_cond_batch(model, [conds.pair], x, timestep, options), (None, None)
    else:
        both = [conds.pair, conds.negative_pair]
        cond, uncond = comfy.samplers.calc_cond_batch(model, both, x, timestep, options)
        unconds = uncond.chunk(2)
    estimates = []
    halves = zip(cond.chunk(2), unconds, x.chunk(2), timestep.chunk(2), conds.negatives, scales, strict=True)
    for estimate, uncond, part, level, negative, scale in halves:
        if scale != 1.0:
            if uncond is None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                _, uncond = comfy.samplers.calc_cond_batch(model, [None, negative], part, level, options)
            estimate = uncond + (estimate - uncond) * scale
        estimates.append(estimate)
    return torch.cat(estimates)
