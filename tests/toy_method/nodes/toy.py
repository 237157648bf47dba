"""A toy: DDIM whose estimates are pulled to 0."""

from comfy_api.latest import io
from torch import Tensor

from ..samplers.toy import toy
from .host import Run, RunSampler
from .inputs import share

NODE = "SteerToySampler"


class SteerToySampler(io.ComfyNode):
    """DDIM on estimates that are pulled to 0 (arXiv:2010.02502)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Toy Sampler (Steer)",
            category="Steer/samplers",
            description="DDIM whose estimates are pulled to 0.",
            inputs=[share("pull", 0.0, "How far estimates are pulled to 0: 0 is DDIM, 1 leaves nothing.")],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def execute(cls, pull) -> io.NodeOutput:
        def sampled(run: Run) -> Tensor:
            return run.walk(lambda x: toy(run.denoise, x, run.sigmas, run.law, pull))

        return io.NodeOutput(RunSampler(NODE, sampled))


NODES = [SteerToySampler]
