"""DDIM and DDPM sampling, in one sampler."""

from comfy_api.latest import io
from torch import Tensor

from ..samplers.ddim import ddim
from .host import Run, RunSampler
from .inputs import share
from .schema import where_known

NODE = "SteerDDIMSampler"


class SteerDDIMSampler(io.ComfyNode):
    """DDIM, deterministic at eta 0 and the DDPM ancestral sampler at eta 1 (arXiv:2010.02502)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="DDIM Sampler (Steer)",
            category="Steer/samplers",
            description="DDIM for any model: deterministic at eta 0, the DDPM posterior at eta 1. "
            "One model call per step.",
            **where_known(search_aliases=["ddpm", "eta", "deterministic", "stochastic"]),
            inputs=[
                share(
                    "eta",
                    0.0,
                    "How much of each step's noise is drawn afresh: 0 repeats exactly and can be inverted, "
                    "1 is DDPM's ancestral sampling.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def execute(cls, eta) -> io.NodeOutput:
        def sampled(run: Run) -> Tensor:
            return run.walk(lambda x: ddim(run.denoise, x, run.sigmas, run.law, eta, run.noise("step")))

        return io.NodeOutput(RunSampler(NODE, sampled))


NODES = [SteerDDIMSampler]
