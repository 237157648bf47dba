"""Source and target sampled in lockstep: one latent batch of both, one model call for both prompts, the same noise."""

from collections.abc import Callable
from copy import copy

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...samplers.same_noise import SameNoise
from .conditioning import paired
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
    """A guider whose own calls draw noise as they always do."""

    def __init__(self, guider, same_noise: SameNoise):
        self._guider, self._same_noise = guider, same_noise

    def __call__(self, *args, **kwargs) -> Tensor:
        with self._same_noise.away():
            return self._guider(*args, **kwargs)


class TwoPromptGuider(RunGuider, comfy.samplers.CFGGuider):
    """Samples two prompts from one latent, in a batch of both; returns both, source first.

    `source_guided`: whether the source is guided too, or its estimate is that of its prompt alone, which costs less.
    """

    def __init__(self, node: str, model, cfg: float, source_guided: bool):
        super().__init__(model)
        self.node, self.cfg, self.source_guided = node, cfg, source_guided

    def set_prompts(self, source, target, negative, source_negative=None):
        self.prompts, self.negatives = (source, target), (source_negative, negative)

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
        negative = self.negatives[1] if self.negatives[0] is None else paired(*self.negatives, batch)
        guider.set_conds(paired(*self.prompts, batch), negative)
        if mask is not None and mask.ndim > 2 and len(mask) == batch > 1:
            mask = torch.cat([mask, mask])
        sampler = RunSampler(self.node, self.method(call.sampler), call.sampler)
        noise, latent = (torch.cat([x, x]) for x in (call.noise, call.latent_image))
        return guider, call._replace(noise=noise, latent_image=latent, sampler=sampler, denoise_mask=mask)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        # where a patch looks at positive and negative in one call (as NAG's), they stay together
        if self.source_guided or model_options.get("disable_cfg1_optimization", False):
            return super().predict_noise(x, timestep, model_options, seed)
        positive, negative = self.conds["positive"], self.conds["negative"]
        both = comfy.samplers.calc_cond_batch(self.inner_model, [positive], x, timestep, model_options)[0]
        (source, cond), target, level = both.chunk(2), x.chunk(2)[1], timestep.chunk(2)[1]
        if self.cfg == 1.0:
            return both
        comfy.model_management.throw_exception_if_processing_interrupted()
        _, uncond = comfy.samplers.calc_cond_batch(self.inner_model, [None, negative], target, level, model_options)
        guided = comfy.samplers.cfg_function(
            self.inner_model, cond, uncond, self.cfg, target, level, model_options, positive, negative
        )
        return torch.cat([source, guided])
