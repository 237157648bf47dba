"""Gradient guidance: losses steer any guider, in an interval and a mask."""

from comfy_api.latest import io

from .host import law
from .inputs import percent
from .runs.gradient_guidance import GradientGuider
from .runs.loss_terms import Term
from .schema import advanced, answer_of, check_interval, where_known
from .wires import SteerLoss

NODE = "SteerGradientGuider"


class SteerGradientGuider(io.ComfyNode):
    """Gradient guidance on top of any guider (arXiv:2105.05233, 2302.07121)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Gradient Guider (Steer)",
            category="Steer/guiders",
            description="Lets a loss (CLIP text, CLIP image, classifier) steer any guider: at each step the estimate "
            "is moved along the loss's gradient. Put one round another to use several losses at once; they share the "
            "model's calls.",
            **where_known(
                search_aliases=[
                    "guidance",
                    "clip guidance",
                    "classifier guidance",
                    "universal guidance",
                    "loss",
                ]
            ),
            inputs=[
                io.Guider.Input("guider", tooltip="What to guide: the host's guiders, Steer's, or another of this."),
                SteerLoss.Input("loss", tooltip="What is to become less: a CLIP distance, a classifier's doubt."),
                io.Float.Input(
                    "scale",
                    default=100.0,
                    min=-100000.0,
                    max=100000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How strongly. CLIP losses: tens to hundreds. A classifier: 1 is its probability as it is, "
                    "2 to 20 sharpen it. Measurement Loss: 1. Below 0 pushes away.",
                ),
                advanced(percent("start_percent", 0.0, "Where guidance begins, as a share of the run.")),
                advanced(
                    percent(
                        "end_percent", 1.0, "Where it ends. Outside the interval the run costs what it costs without."
                    )
                ),
                io.Boolean.Input(
                    "through_model",
                    default=True,
                    tooltip="On: the gradient goes through the diffusion model, as published; about three times the "
                    "cost of a step, and its activations in memory. Off: it stops at the denoised estimate, far "
                    "cheaper. A classifier reads the noisy latent and needs neither.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="1 = steer here; elsewhere the estimate is left alone."),
                advanced(
                    io.Float.Input(
                        "max_change",
                        default=3.0,
                        min=0.0,
                        max=1000.0,
                        step=0.01,
                        optional=True,
                        tooltip="The estimate moves by at most this, as a multiple of what is still undecided at that "
                        "noise level (RMS per picture). Lower it when pictures get harsh.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "iterations",
                        default=1,
                        min=1,
                        max=100,
                        optional=True,
                        tooltip="1: one gradient at each step. More solve for the estimate that agrees with the loss "
                        "and stays close to the model's: no scale overshoots then. Each is one more gradient. With "
                        "through_model off.",
                    )
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent, end_percent):
        return answer_of((check_interval, NODE, start_percent, end_percent))

    @classmethod
    def execute(
        cls, guider, loss, scale, start_percent, end_percent, through_model, mask=None, max_change=3.0, iterations=1
    ) -> io.NodeOutput:
        check_interval(NODE, start_percent, end_percent)
        check_iterations(iterations, through_model, loss)
        window = law.window_of(guider.model_patcher, (start_percent, end_percent))
        term = Term(NODE, loss, scale, window, through_model, max_change, mask, iterations)
        return io.NodeOutput(GradientGuider(guider, term))


def check_iterations(iterations: int, through_model: bool, loss) -> None:
    """ValueError for several iterations of what does not read the estimate, which is what they solve for."""
    if iterations > 1 and loss.noisy:
        raise ValueError(
            f"iterations is {iterations}, and they solve for the estimate, but this loss (a classifier) reads the "
            "noisy latent; set iterations to 1"
        )
    if iterations > 1 and through_model:
        raise ValueError(
            f"iterations is {iterations} with through_model on, and they solve for the estimate, after the model; "
            "turn through_model off, or set iterations to 1"
        )


NODES = [SteerGradientGuider]
