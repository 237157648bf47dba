"""Editing between two prompts without inversion, on every model: its guider and its sampler."""

from collections.abc import Iterator
from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.core import Step
from ..samplers.direct_edit import direct_edit, model_calls
from .host import PairGuider, Run, RunSampler, log
from .inputs import scale, share
from .schema import advanced, check_encoded, where_known

GUIDER, SAMPLER = "SteerEditGuider", "SteerDirectEditSampler"


class SteerEditGuider(io.ComfyNode):
    """Two prompts in lockstep, each at its own scale, for editing without inversion (arXiv:2412.08629)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=GUIDER,
            display_name="Edit Guider (Steer)",
            category="Steer/guiders",
            description="Predicts what a picture shows and what it is to show side by side, on any model, so that "
            "Direct Edit Sampler can change the one into the other without inverting it. Gives the edited picture.",
            **where_known(
                search_aliases=[
                    "flowedit",
                    "edit by words",
                    "change a picture by text",
                    "instruct",
                    "flowalign",
                    "infedit",
                ]
            ),
            inputs=[
                io.Model.Input("model", tooltip="Any model that draws pictures or video from text; it is not changed."),
                io.Conditioning.Input("source", tooltip="What the picture shows. (With Flux, through FluxGuidance.)"),
                io.Conditioning.Input(
                    "target", tooltip="What it is to show: the same words with some of them changed."
                ),
                scale("source_cfg", 1.0, "Guidance scale of the source; 1 is off. SD3: 3.5."),
                scale(
                    "target_cfg",
                    5.0,
                    "Guidance scale of the target; 1 is off (Flux and other models with guidance of "
                    "their own). SD3: 13.5. Higher changes more.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from, usually an empty prompt; needed unless both scales are 1. "
                    "The source's prompt here, with target_cfg 7.5, is FlowAlign's guidance.",
                ),
                io.Conditioning.Input(
                    "source_negative",
                    optional=True,
                    tooltip="The same for the source; without it `negative` is for both.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced with Direct Edit Sampler.")],
        )

    @classmethod
    def execute(
        cls, model, source, target, source_cfg, target_cfg, negative=None, source_negative=None
    ) -> io.NodeOutput:
        check_encoded(source=source, target=target, negative=negative, source_negative=source_negative)
        either = negative if source_negative is None else source_negative
        for name, value, against in (("target_cfg", target_cfg, negative), ("source_cfg", source_cfg, either)):
            if value != 1.0 and against is None:
                raise ValueError(
                    f"{name} is {value:g}, and there is nothing for it to lead away from; connect an empty prompt to "
                    f"negative, or set {name} to 1"
                )
        guider = PairGuider(GUIDER, model, source_cfg, target_cfg)
        guider.set_prompts(source, target, negative, source_negative)
        return io.NodeOutput(guider)


class SteerDirectEditSampler(io.ComfyNode):
    """FlowEdit, InfEdit and FlowAlign for every model (arXiv:2412.08629, arXiv:2312.04965, arXiv:2505.23145)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=SAMPLER,
            display_name="Direct Edit Sampler (Steer)",
            category="Steer/samplers",
            description="Changes a picture from one prompt to another without inverting it: at each level the source "
            "is noised afresh, and the picture moves by what the two prompts differ in. Starts at the encoded "
            "picture; SDEdit Sigmas say how much may change. A noise mask keeps the rest exactly.",
            **where_known(
                search_aliases=["flowedit", "infedit", "flowalign", "edit without inversion", "inversion-free editing"]
            ),
            inputs=[
                share(
                    "renewal",
                    0.0,
                    "How much of the edit each step forgets: 0 carries it on (FlowEdit); 1 makes it anew "
                    "from the last estimate (InfEdit), for models of few steps (LCM, Turbo).",
                ),
                advanced(
                    share(
                        "pull",
                        0.0,
                        "How strongly the picture is pulled back to the source (FlowAlign; its code's 0.01 "
                        "in 33 steps is 0.33 here). Keeps more, edits less.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "average",
                        default=1,
                        min=1,
                        max=100,
                        tooltip="Noises to average over in each step: steadier, at as many times the cost.",
                    )
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="For SamplerCustomAdvanced with Edit Guider or Prompt-to-Prompt Guider.")
            ],
        )

    @classmethod
    def execute(cls, renewal, pull, average) -> io.NodeOutput:
        method = partial(edited, renewal=renewal, pull=pull, average=average)
        sampler = RunSampler(SAMPLER, method, masks_itself=True, two_prompts=True, mask_needed=False)
        return io.NodeOutput(sampler)


def edited(run: Run, renewal: float, pull: float, average: int) -> Tensor:
    """The source and its edit, or at a last sigma above 0 both noised to it, as a batch of two halves."""
    run.check()
    if run.guider.halves != 2:
        raise ValueError(
            f"{SAMPLER}: the guider is of one prompt, and an edit is from one to another; connect SteerEditGuider "
            "(any model) or SteerPromptToPromptGuider"
        )
    run.check_fresh_noise()
    if not run.known.any():
        raise ValueError(f"{SAMPLER}: latent_image is empty (all zero); encode the picture to edit")
    if run.mask is not None and run.nothing_to_do():
        return run.known
    size = len(run.known) // 2
    source, draw = run.known[:size], run.noise("edit")
    mask = None if run.mask is None else run.mask[:size]

    def noise(like: Tensor) -> Tensor:
        return draw(like)[:size]

    def pair(x_source: Tensor, x_target: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        denoised_source, denoised_target = run.denoise(torch.cat([x_source, x_target]), sigma).chunk(2)
        return denoised_source, denoised_target

    x, count = run.law.noised(source, run.sigmas[0], noise(source)), len(run.sigmas) - 1
    log.info("%s: %d model calls for %d steps", SAMPLER, model_calls(count, average), count)
    steps = direct_edit(pair, x, run.sigmas, run.law, source, noise, renewal, pull, average, mask)
    for step in run.shown(doubled(steps, run, source), count):
        x = step.x
    return run.result(x)


def doubled(steps: Iterator[Step], run: Run, source: Tensor) -> Iterator[Step]:
    """The steps of the target with the source before each, at the same level; their estimates as the run gives them."""
    for x, denoised, sigma in steps:
        x_source = x - run.law.alpha(sigma) * (denoised - source)
        yield Step(torch.cat([x_source, x]), run.guider.given_out(torch.cat([source, denoised])), sigma)


NODES = [SteerEditGuider, SteerDirectEditSampler]
