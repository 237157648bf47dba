"""A guider of two prompts, each at a scale of its own, for every model that the host runs."""

from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from .conditioning import paired
from .errors import errors_of
from .guider import SampleCall
from .guiders import patches_guide, without_guidance_patches
from .lockstep import PairConds, TwoPromptGuider, guided_pair, in_lockstep
from .run import Run
from .sampler import RunSampler


class PairGuider(TwoPromptGuider):
    """Predicts the source's and the target's prompt at latents of their own; returns the target's alone.

    In one call of the model where the two differ in their text alone, and else in one for each.
    """

    negatives: tuple[list | None, list | None] = (None, None)

    def __init__(self, node: str, model, source_cfg: float, target_cfg: float):
        super().__init__(node, model)
        # `cfg` is what patches set to change guidance: the target's
        self.source_cfg, self.cfg = source_cfg, target_cfg

    def set_prompts(self, source, target, negative=None, source_negative=None):
        self.prompts, self.negatives = (source, target), (source_negative, negative)

    def conds_of(self, batch: int) -> dict[str, list]:
        source, target = self.prompts
        source_negative, negative = self.negatives
        source_negative = negative if source_negative is None else source_negative
        conds = {"source": source, "positive": target, "source_negative": source_negative, "negative": negative}
        conds["pair"] = in_one_call(source, target, batch)
        if negative is source_negative:
            conds["negative_pair"] = negative
        elif negative is not None and source_negative is not None:
            conds["negative_pair"] = in_one_call(source_negative, negative, batch)
        return {name: entries for name, entries in conds.items() if entries is not None}

    def prepared(self, call: SampleCall) -> tuple[object, SampleCall]:
        if not (isinstance(call.sampler, RunSampler) and call.sampler.two_prompts):
            raise ValueError(
                "the sampler draws one picture from noise, and this guider is for one that edits a picture from one "
                "prompt to another; connect SteerDirectEditSampler"
            )
        return super().prepared(call)

    def method(self, sampler) -> Callable[[Run], Tensor]:
        return lambda run: in_lockstep(run, sampler, lambda denoise, x, sigma: denoise(x))

    def given_out(self, samples: Tensor) -> Tensor:
        return samples.chunk(2)[1]

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's signature)
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.cfg != 1.0 and "negative" not in self.conds:
            with errors_of(self.node):
                raise ValueError(
                    f"a patch on the model (CFG Override, for example) sets target_cfg to {self.cfg:g}, which needs a "
                    "negative; connect one, or remove the patch"
                )
        scales = self.source_cfg, self.cfg
        guided = [scale != 1.0 for scale in scales]
        pairs = "pair" in self.conds and (not all(guided) or "negative_pair" in self.conds)
        # the host's context windows take one clip at a time
        if pairs and not patches_guide(model_options) and "context_handler" not in model_options:
            negatives = self.conds.get("source_negative"), self.conds.get("negative")
            conds = PairConds(self.conds["pair"], negatives, self.conds.get("negative_pair"))
            return guided_pair(self.inner_model, conds, scales, x, timestep, model_options)
        names = ("source", "source_negative"), ("positive", "negative")
        parts = zip(x.chunk(2), timestep.chunk(2), names, scales, strict=True)
        return torch.cat([
            comfy.samplers.sampling_function(
                self.inner_model, part, level, self.conds.get(negative), self.conds[positive], scale,
                model_options=without_guidance_patches(model_options) if scale == 1.0 else model_options, seed=seed,
            )
            for part, level, (positive, negative), scale in parts
        ])  # fmt: skip


def in_one_call(source: list, target: list, batch: int) -> list | None:
    """The two as one conditioning of a batch of both; None where they differ in more than their text or its length."""
    lengths = [[text.shape[1:] for text, _ in entries] for entries in (source, target)]
    if lengths[0] != lengths[1]:
        return None
    try:
        return paired(source, target, batch)
    except ValueError:  # an area, a ControlNet or a guidance of its own
        return None
