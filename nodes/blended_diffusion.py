"""Blended Latent Diffusion: any sampler inside a mask, the rest kept."""

from functools import partial

from comfy_api.latest import io
from torch import Tensor

from ..samplers.blended_diffusion import Blend
from .host import Run, RunSampler
from .schema import where_known

NODE = "SteerBlendedSampler"


class SteerBlendedSampler(io.ComfyNode):
    """Blended Latent Diffusion: prompt-driven editing inside a mask (arXiv:2206.02779)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Blended Diffusion Sampler (Steer)",
            category="Steer/samplers",
            description="Samples with the given sampler inside the noise mask of the latent; outside, every model "
            "call sees the source freshly noised, and the result is the source exactly.",
            **where_known(
                search_aliases=[
                    "inpaint",
                    "inpainting",
                    "masked edit",
                    "blended latent diffusion",
                    "local edit",
                ]
            ),
            inputs=[
                io.Sampler.Input("sampler", tooltip="Any sampler, deterministic or stochastic."),
                io.Int.Input(
                    "dilation",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Latent pixels by which the mask is grown at the start, shrinking to the mask itself by "
                    "the last step. Helps thin masks; 0 is off.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced; latent_image needs a noise mask.")],
        )

    @classmethod
    def execute(cls, sampler, dilation) -> io.NodeOutput:
        method = partial(blended, sampler=sampler, dilation=dilation)
        return io.NodeOutput(RunSampler(NODE, method, sampler, masks_itself=True))


def blended(run: Run, sampler, dilation: int) -> Tensor:
    """Another SAMPLER's result inside the mask, where the blend answers its calls, and the source outside."""
    run.check_source()
    blend = Blend(run.sigmas, run.law, run.known, run.noise_mask, run.noise("known"), dilation)
    if run.nothing_to_do():
        return run.known
    return run.result(blend.finish(run.scaled(run.sample(sampler, blend.denoise))))


NODES = [SteerBlendedSampler]
