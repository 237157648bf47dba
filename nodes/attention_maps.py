"""Attention recorded from a run, put into another, and shown."""

from comfy_api.latest import io

from ..attention.prompt_to_prompt import Timing
from ._host import check_number
from ._host_attention import sigma_at
from ._host_attention_maps import recorded, with_recording
from ._types import SteerAttention, SteerEdit


class SteerCaptureAttention(io.ComfyNode):
    """Runs the sampling and keeps its attention (arXiv:2208.01626, Algorithm 1, the source's half)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerCaptureAttention",
            display_name="Capture Attention (Steer)",
            category="Steer/attention",
            description="Samples as SamplerCustomAdvanced does, and keeps what the positive prompt attended to: for "
            "heatmaps, and to put into later runs while this one stays cached.",
            inputs=[
                io.Noise.Input("noise", tooltip="The starting noise."),
                io.Guider.Input("guider", tooltip="Any guider with one positive prompt, on a UNet model."),
                io.Sampler.Input("sampler", tooltip="The sampler."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels."),
                io.Latent.Input("latent_image", tooltip="The latent to start from."),
                io.Float.Input(
                    "cross_end",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How long to keep what Inject Attention needs of the words; 0 keeps only heatmaps.",
                ),  # fmt: skip
                io.Float.Input(
                    "self_end",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How long to keep what Inject Attention needs of the layout.",
                ),  # fmt: skip
            ],
            outputs=[
                io.Latent.Output(tooltip="The sampled latent."),
                SteerAttention.Output(display_name="attention", tooltip="For Attention Heatmap and Inject Attention."),
            ],
        )

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, cross_end=0.8, self_end=0.4) -> io.NodeOutput:
        node = "SteerCaptureAttention"
        check_number(node, "cross_end", cross_end, 0.0, 1.0)
        check_number(node, "self_end", self_end, 0.0, 1.0)
        latent, attention = recorded(node, noise, guider, sampler, sigmas, latent_image, cross_end, self_end)
        return io.NodeOutput(latent, attention)


class SteerInjectAttention(io.ComfyNode):
    """Prompt-to-Prompt from a finished source run (arXiv:2208.01626, Algorithm 1, the target's half)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerInjectAttention",
            display_name="Inject Attention (Steer)",
            category="Steer/attention",
            description="Makes a run with the target prompt attend as a captured run did. Change the edit and run "
            "again: the captured run stays cached.",
            inputs=[
                io.Model.Input("model", tooltip="The model of the captured run; it is not changed."),
                SteerAttention.Input("attention", tooltip="From Capture Attention, sampled with the source prompt."),
                SteerEdit.Input("edit", tooltip="From Prompt Edit. Its target goes to the guider as positive."),
                io.Float.Input(
                    "cross_end",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How long, as a share of the run, words keep the source's places. Lower frees the edit.",
                ),  # fmt: skip
                io.Float.Input(
                    "self_end",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How long the picture keeps the source's layout. Lower it where shapes are to change.",
                ),  # fmt: skip
            ],
            outputs=[io.Model.Output(tooltip="For a guider with the edit's target as positive.")],
        )

    @classmethod
    def execute(cls, model, attention, edit, cross_end, self_end) -> io.NodeOutput:
        node = "SteerInjectAttention"
        check_number(node, "cross_end", cross_end, 0.0, 1.0)
        check_number(node, "self_end", self_end, 0.0, 1.0)
        if edit.blend is not None:
            raise ValueError(
                f"{node}: a local blend needs the source sampled alongside; use SteerPromptToPromptGuider, or the edit "
                "without SteerLocalBlend"
            )
        if attention.tokens != edit.source.length:
            raise ValueError(
                f"{node}: the captured run's prompt has {attention.tokens} tokens and the edit's source "
                f"{edit.source.length}; capture with the source of the same SteerPromptEdit"
            )
        timing = Timing(edit, sigma_at(model), cross_end, self_end)
        if float(timing.last.min()) < attention.cross_last or timing.self_last < attention.self_last:
            raise ValueError(
                f"{node}: cross_end, self_end or a word's window reach further than what was captured; raise them in "
                "SteerCaptureAttention"
            )
        return io.NodeOutput(with_recording(model, node, attention, edit, timing))


NODES = [SteerCaptureAttention, SteerInjectAttention]
