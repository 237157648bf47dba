"""Null-text optimisation: a negative conditioning for each step, under which guidance returns the inverted picture."""

from comfy_api.latest import io

from .host import conditioning, inverted, log
from .inputs import scale
from .runs.null_text import (
    GONE,
    NODE,
    Settings,
    check_conditionings,
    check_guidance,
    optimise,
    report,
)
from .schema import advanced, shown, where_known
from .wires import SteerInversion


class SteerNullText(io.ComfyNode):
    """The negative conditioning under which CFG returns an inverted picture (arXiv:2211.09794, Algorithm 1)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Null-Text Optimization (Steer)",
            category="Steer/inversion",
            description="Changes the negative conditioning, step by step, until guidance at this cfg follows the "
            "inversion and so returns its picture. The result is a negative for any sampler: with the same positive it "
            "returns the picture, with an edited one it changes what the words change.",
            **where_known(
                has_intermediate_output=True,  # its report is sent again where its result is taken from the cache
                search_aliases=["null text inversion", "nti", "negative prompt inversion"],
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample; it is not changed."),
                io.Conditioning.Input("positive", tooltip="The prompt of the picture, the one it was inverted with."),
                io.Conditioning.Input("negative", tooltip="Where the search starts: usually an empty prompt."),
                scale("cfg", 7.5, "The guidance scale that will be sampled with."),  # fmt: skip
                SteerInversion.Input("inversion", tooltip="From an inversion at cfg 1 with the same positive."),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="Predictions, and updates of the embedding, in each step at most.",
                ),
                advanced(
                    io.Float.Input(
                        "learning_rate",
                        default=0.01,
                        min=1e-6,
                        max=10.0,
                        step=0.001,
                        round=False,
                        tooltip="Of the first step; it falls to half of it over the run.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "early_stop",
                        default=1e-5,
                        min=0.0,
                        max=1.0,
                        step=1e-6,
                        round=False,
                        tooltip="A step is done when its loss is below this (a hundred times this in the last steps); "
                        "0 always makes all updates.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The negative for any guider or KSampler, at the same cfg and with the inversion's sigmas."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, inversion, inner_steps, learning_rate, early_stop
    ) -> io.NodeOutput:
        inverted.check_fits(inversion, model)
        check_conditionings(positive, negative, inversion)
        check_guidance(model)
        settings = Settings(cfg, inner_steps, learning_rate, early_stop)
        results, predictions = optimise(model, positive, negative, inversion, settings)
        text = report(results, predictions, inversion, settings)
        log.info("%s: %s", NODE, text)
        embeddings = [item.embedding for item in results]
        options = conditioning.negative_takes_over(positive, negative)
        verdict = text.partition("\n")[0]
        warning = verdict if verdict.startswith(GONE) else ""
        null_text = conditioning.windows(embeddings, inversion.sigmas, options)
        return io.NodeOutput(null_text, ui=shown(text, warning))


NODES = [SteerNullText]
