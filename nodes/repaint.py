"""RePaint: inpainting and outpainting by resampling."""

from collections.abc import Iterator
from functools import partial

from comfy_api.latest import io
from torch import Tensor

from ..samplers.core import Step
from ..samplers.repaint import model_calls, repaint
from .host import Run, RunSampler, log
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
            "model calls (logged before it starts).",
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
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced; latent_image needs a noise mask.")],
        )

    @classmethod
    def execute(cls, resamples, jump_length, eta) -> io.NodeOutput:
        method = partial(repainted, resamples=resamples, jump_length=jump_length, eta=eta)
        return io.NodeOutput(RunSampler(NODE, method, masks_itself=True))


def repainted(run: Run, resamples: int, jump_length: int, eta: float) -> Tensor:
    """The result of RePaint; its number of model calls goes to the log first."""

    def steps(x: Tensor) -> Iterator[Step]:
        log.info("%s: %d model calls for %d steps", NODE, calls, count)
        if count <= jump_length and resamples > 1:
            log.warning("%s: %d steps are too few to jump back %d, so nothing is resampled; use more steps or a "
                        "smaller jump_length", NODE, count, jump_length)  # fmt: skip
        streams = run.noise("step"), run.noise("known")
        inputs = run.sigmas, run.law, run.known, run.noise_mask
        return repaint(run.denoise, x, *inputs, *streams, resamples, jump_length, eta)

    count = len(run.sigmas) - 1
    calls = model_calls(count, resamples, jump_length)
    return run.walk(steps, calls)


NODES = [SteerRePaintSampler]
