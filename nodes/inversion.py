"""DDIM inversion, plain and exact."""

from comfy_api.latest import io

from ..samplers.inversion_report import DOES_NOT_HOLD
from .host import RunSampler, checks, inverted, log, progress
from .runs.inversion import Inverting
from .schema import advanced, shown, where_known
from .wires import SteerInversion

NODE = "SteerDDIMInversion"


class SteerDDIMInversion(io.ComfyNode):
    """The noise that sampling turns into a given picture (arXiv:2010.02502, arXiv:2211.09794, arXiv:2309.04907)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="DDIM Inversion (Steer)",
            category="Steer/inversion",
            description="Finds the noise from which sampling with the same guider and sigmas gives back this picture, "
            "samples back to prove it, and keeps the whole trajectory for editing. Use a guider at cfg 1 with the "
            "prompt of the picture, and a deterministic sampler (euler, DDIM with eta 0) afterwards.",
            **where_known(
                has_intermediate_output=True,  # its report is sent again where its result is taken from the cache
                search_aliases=[
                    "invert image",
                    "unsampler",
                    "reverse",
                    "image to noise",
                    "real image editing",
                    "exact inversion",
                    "flip sigmas",
                ],
            ),
            inputs=[
                io.Guider.Input("guider", tooltip="The guider that will sample; best at cfg 1."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The sigmas that will be sampled with (descending, to 0). "
                    "SDEdit Sigmas invert part of the way.",
                ),
                io.Latent.Input("latent_image", tooltip="The encoded picture."),
                io.Int.Input(
                    "refine",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="0: plain inversion, one model call a step. Above: the exact solution, at most so "
                    "many calls a step (4 is plenty; it stops at the tolerance).",
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=1e-4,
                        min=1e-7,
                        max=1.0,
                        step=1e-5,
                        round=False,
                        tooltip="How exact, when refined: about the largest error of the picture sampled back, "
                        "as a share of the latents' std.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "check",
                        default=True,
                        optional=True,
                        tooltip="Sample back afterwards and report the error (one model call a step more).",
                    )
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The picture, for latent_image of SamplerCustomAdvanced."),
                io.Noise.Output(tooltip="The inverted noise, for noise of SamplerCustomAdvanced with the same sigmas."),
                SteerInversion.Output(display_name="inversion", tooltip="The trajectory, for the editing nodes."),
            ],
        )

    @classmethod
    def execute(cls, guider, sigmas, latent_image, refine, tolerance, check=True) -> io.NodeOutput:
        samples = checks.samples_of(guider.model_patcher, latent_image)
        inverting = Inverting(refine, tolerance, check)
        steps = max(1, len(sigmas) - 1) * (2 if check else 1)
        sampler = RunSampler(NODE, inverting, one_prompt=True)
        sampler.run_once(guider, sigmas, samples, **progress.previews(guider.model_patcher, steps))
        if inverting.inversion is None:
            raise ValueError("sigmas is empty, so there is nothing to invert along")
        log.info("%s: %s", NODE, inverting.report)
        latent, noise = inverted.start(inverting.inversion)
        warning = next((line for line in inverting.report.splitlines() if line.startswith(DOES_NOT_HOLD)), "")
        text = shown(inverting.report, warning)
        return io.NodeOutput({**latent_image, **latent}, noise, inverting.inversion, ui=text)


NODES = [SteerDDIMInversion]
