"""Classifier-free guidance with an interval and a third, empty conditioning."""

from comfy_api.latest import io

from .host import SteerCFG
from .inputs import percent, scale
from .schema import advanced, answer_of, check_encoded, check_interval, where_known

NODE = "SteerCFGGuider"


class SteerCFGGuider(io.ComfyNode):
    """Classifier-free guidance in an interval, with negative and empty prompts apart (arXiv:2207.12598, 2404.07724)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="CFG Guider (Steer)",
            category="Steer/guiders",
            description="CFG that can be limited to an interval of the run (outside it only the positive is computed, "
            "at half the cost), and that can push towards the positive and away from the negative separately when an "
            "empty conditioning is connected. At its defaults it is the host's CFGGuider.",
            **where_known(
                search_aliases=[
                    "negative prompt",
                    "guidance interval",
                    "guidance scale",
                    "limited interval",
                    "classifier-free guidance",
                ]
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to guide; it is not changed."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                scale("cfg", 7.5, "Guidance scale; 1 is off. The papers' (1 + w) is cfg = 1 + w."),  # fmt: skip
                percent("start_percent", 0.0, "Where guidance begins, as a share of the run."),  # fmt: skip
                percent(
                    "end_percent", 1.0, "Where it ends. Outside the interval the model runs on the positive alone."
                ),
                advanced(
                    scale(
                        "negative_scale",
                        1.0,
                        "How far to push away from the negative, separately from cfg. Needs `empty`.",
                    )
                ),
                io.Conditioning.Input(
                    "empty",
                    optional=True,
                    tooltip="An empty prompt. With it the estimate is D0 + cfg (D+ - D0) - negative_scale (D- - D0).",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent, end_percent):
        return answer_of((check_interval, NODE, start_percent, end_percent))

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, start_percent, end_percent, negative_scale, empty=None
    ) -> io.NodeOutput:
        check_interval(NODE, start_percent, end_percent)
        if empty is None and negative_scale != 1.0:
            raise ValueError(
                f"negative_scale is {negative_scale:g}, which needs the empty conditioning to be told from "
                "cfg; connect an empty prompt to `empty`, or leave negative_scale at 1"
            )
        check_encoded(positive=positive, negative=negative, empty=empty)
        guider = SteerCFG(NODE, model, cfg, negative_scale, (start_percent, end_percent))
        guider.set_conds(positive, negative, empty)
        return io.NodeOutput(guider)


NODES = [SteerCFGGuider]
