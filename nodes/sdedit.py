"""SDEdit: redraw a picture or strokes, from a strength in diffusion time."""

from functools import partial

import torch
from comfy_api.latest import io

from ..samplers.sdedit import sdedit_sigmas
from .host import law
from .inputs import share
from .schema import answer_of, check_strength, where_known

NODE = "SteerSDEditSigmas"


class SteerSDEditSigmas(io.ComfyNode):
    """Where SDEdit starts and the steps from there (arXiv:2108.01073)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="SDEdit Sigmas (Steer)",
            category="Steer/sigmas",
            description="Sigmas that start at a strength in diffusion time, the same for every scheduler, and spend "
            "all the steps below it. Sample with them from an encoded picture to redraw it.",
            **where_known(
                search_aliases=[
                    "img2img",
                    "image to image",
                    "denoise",
                    "strength",
                    "redraw",
                    "sketch to image",
                    "strokes",
                ]
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will sample; its noise levels decide where a strength lies."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=law.SCHEDULERS,
                    default="normal",
                    tooltip="Whose spacing of steps to use.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=1000, tooltip="Steps really taken, whatever the strength."
                ),
                share(
                    "strength",
                    0.6,
                    "SDEdit's t0, the share of diffusion time that is redone: 0.3 keeps much of the picture, "
                    "0.6 keeps its layout, 1 keeps nothing.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="For SamplerCustomAdvanced."),
                io.Int.Output(
                    display_name="start_step",
                    tooltip="Steps of the scheduler's full run above the start: for KSamplerAdvanced, "
                    "start_at_step with steps = start_step + steps.",
                ),
                io.Float.Output(display_name="start_sigma", tooltip="The noise level of the start."),
            ],
        )

    @classmethod
    def validate_inputs(cls, strength):
        return answer_of((check_strength, NODE, strength))

    @classmethod
    def execute(cls, model, scheduler, steps, strength) -> io.NodeOutput:
        check_strength(NODE, strength)
        start_sigma = law.strength_sigma(model, strength)
        sigmas, start_step = sdedit_sigmas(partial(law.host_sigmas, model, scheduler), start_sigma, steps)
        return io.NodeOutput(torch.tensor(sigmas), start_step, start_sigma)


NODES = [SteerSDEditSigmas]
