"""RePaint: inpainting and outpainting by resampling; without a mask the resampling alone, time travel."""

from collections.abc import Iterator
from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.core import Step
from ..samplers.repaint import model_calls, repaint
from .host import Run, RunSampler, log, progress
from .inputs import share
from .schema import advanced, where_known

NODE = "SteerRePaintSampler"


class SteerRePaintSampler(io.ComfyNode):
    """RePaint inpainting for any model, without training (arXiv:2201.09865)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="RePaint Sampler (Steer)",
            category="Steer/samplers",
            description="Inpaints the noise mask of the latent by resampling: the schedule jumps back up again and "
            "again so that the new part agrees with what is kept. Better joins than masked sampling, for many more "
            "model calls (logged before it starts). Without a noise mask all is sampled that way (time travel), which "
            "gives losses of Gradient Guider more steps at each level.",
            **where_known(
                search_aliases=[
                    "inpaint",
                    "inpainting",
                    "outpaint",
                    "outpainting",
                    "fill",
                    "remove object",
                    "resample",
                    "uncrop",
                    "time travel",
                ]
            ),
            inputs=[
                io.Int.Input(
                    "resamples",
                    default=10,
                    min=1,
                    max=100,
                    tooltip="How often each stretch of the schedule is sampled. 1 never jumps back; the cost grows "
                    "with it.",
                ),
                io.Int.Input(
                    "jump_length",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="How many steps a jump goes back up. The schedule needs more steps than this to jump at "
                    "all.",
                ),
                advanced(share("eta", 1.0, "Randomness of each step: 1 as published (DDPM), 0 deterministic steps.")),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced; latent_image's noise mask is inpainted.")],
        )

    @classmethod
    def execute(cls, resamples, jump_length, eta) -> io.NodeOutput:
        method = partial(repainted, resamples=resamples, jump_length=jump_length, eta=eta)
        return io.NodeOutput(RunSampler(NODE, method, masks_itself=True, mask_needed=False))


def repainted(run: Run, resamples: int, jump_length: int, eta: float) -> Tensor:
    """The result of RePaint; its number of model calls goes to the log first.

    Without a noise mask all is generated, and the jumps are the time travel of FreeDoM (arXiv:2303.09833) and the
    recurrence of universal guidance (arXiv:2302.07121).
    """

    def steps(x: Tensor) -> Iterator[Step]:
        log.info("%s: %d model calls for %d steps", NODE, calls, count)
        if count <= jump_length and resamples > 1:
            log.warning("%s: %d steps are too few to jump back %d, so nothing is resampled; use more steps or a "
                        "smaller jump_length", NODE, count, jump_length)  # fmt: skip
        if run.mask is None:
            progress.tell(NODE, "latent_image has no noise mask, so nothing is kept and all is sampled anew")
        streams = run.noise("step"), run.noise("known")
        mask = torch.ones(1) if run.mask is None else run.mask
        inputs = run.sigmas, run.law, run.known, mask
        return repaint(run.denoise, x, *inputs, *streams, resamples, jump_length, eta)

    count = len(run.sigmas) - 1
    calls = model_calls(count, resamples, jump_length)
    return run.walk(steps, calls)


NODES = [SteerRePaintSampler]
