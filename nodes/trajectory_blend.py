"""DiffEdit's decoding around any sampler: outside the mask the recorded inversion."""

from functools import partial

from comfy_api.latest import io

from .host import RunSampler
from .runs.trajectory_blend import blended_with_trajectory
from .schema import where_known
from .wires import SteerInversion

NODE = "SteerTrajectoryBlendSampler"


class SteerTrajectoryBlendSampler(io.ComfyNode):
    """A background that follows its own inversion and ends exactly at the source (DiffEdit, arXiv:2210.11427)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Trajectory Blend Sampler (Steer)",
            category="Steer/samplers",
            description="Samples with the given sampler inside the noise mask of the latent, from the inverted picture "
            "on; outside, every model call sees the recorded inversion at its level, and the result is the source "
            "exactly.",
            **where_known(search_aliases=["diffedit", "keep background", "masked edit", "inpaint"]),
            inputs=[
                io.Sampler.Input("sampler", tooltip="Any sampler; a deterministic one keeps more of the picture."),
                SteerInversion.Input(
                    "inversion",
                    tooltip="Of the picture in latent_image, made with the sigmas that are sampled with (or of which "
                    "these are the lower part).",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustomAdvanced, with the inversion's LATENT (and a noise mask on it) and NOISE."
                )
            ],
        )

    @classmethod
    def execute(cls, sampler, inversion) -> io.NodeOutput:
        method = partial(blended_with_trajectory, sampler=sampler, inversion=inversion)
        return io.NodeOutput(RunSampler(NODE, method, sampler, masks_itself=True))


NODES = [SteerTrajectoryBlendSampler]
