"""Langevin inpainting: the new part moved at each noise level until it agrees with what is kept."""

from collections.abc import Iterator
from functools import partial

from comfy_api.latest import io
from torch import Tensor

from ..samplers.core import Step
from ..samplers.langevin import langevin, model_calls
from .host import Run, RunSampler, log
from .schema import where_known

NODE = "SteerLangevinSampler"


class SteerLangevinSampler(io.ComfyNode):
    """Inpainting for any model, without training, by Langevin moves of the hole at each noise level."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Langevin Sampler (Steer)",
            category="Steer/samplers",
            description="Inpaints the noise mask of the latent: at each noise level the new part is moved several "
            "times, so that it goes on with what the mask's edge cuts and agrees with what is kept. For several "
            "times as many model calls as masked sampling (logged before it starts).",
            **where_known(
                search_aliases=[
                    "inpaint",
                    "inpainting",
                    "outpaint",
                    "outpainting",
                    "fill",
                    "remove object",
                    "corrector",
                    "LanPaint",
                    "uncrop",
                ]
            ),  # fmt: skip
            inputs=[
                io.Int.Input(
                    "inner",
                    default=5,
                    min=1,
                    max=100,
                    tooltip="Model calls of a step, on average: one at high noise, twice this number less one below. "
                    "More let the new part agree better with what is kept; 3 for fewer than about 20 steps, 1 is plain "
                    "masked sampling.",
                ),
                io.Float.Input(
                    "momentum",
                    default=0.8,
                    min=0.0,
                    max=0.95,
                    step=0.01,
                    tooltip="How much of its motion the new part keeps from one call to the next. More lets it move "
                    "farther; near 0.95 there is too much contrast.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced; latent_image needs a noise mask.")],
        )

    @classmethod
    def execute(cls, inner, momentum) -> io.NodeOutput:
        return io.NodeOutput(RunSampler(NODE, partial(moved, inner=inner, momentum=momentum), masks_itself=True))


def moved(run: Run, inner: int, momentum: float) -> Tensor:
    """The result of the corrector, after a word on what it costs. Its moves are unguided, its steps are not."""

    def steps(x: Tensor) -> Iterator[Step]:
        log.info("%s: %d model calls for %d steps", NODE, calls, len(run.sigmas) - 1)
        of_run = run.denoise, x, run.sigmas, run.law, run.known, run.noise_mask, run.noise("step"), run.noise("known")
        return langevin(*of_run, inner, momentum, run.unguided)

    calls = model_calls(run.sigmas, run.law, inner)
    return run.walk(steps, calls)


NODES = [SteerLangevinSampler]
