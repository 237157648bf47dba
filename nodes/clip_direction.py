"""Directional CLIP guidance: a picture changes as one text changes into another."""

from comfy_api.latest import io

from ..samplers.clip_direction import change, check_wanted
from .clip_guidance import VISION, cutouts_input, smallest_input
from .host import clip as host_clip
from .picture_inputs import check_picture
from .runs.clip_direction import CLIPDirectionLoss
from .schema import answer_of, where_known
from .wires import SteerLoss

NODE = "SteerCLIPDirectionLoss"


def check_texts(source_text: str, target_text: str) -> None:
    """ValueError unless both say something, and not the same."""
    for name, text in (("source_text", source_text), ("target_text", target_text)):
        if not text.strip():
            raise ValueError(f"{name} is empty; say what the picture shows in the one, and should show in the other")
    if source_text.split() == target_text.split():
        raise ValueError("source_text and target_text are alike; say in target_text what is to be different")


class SteerCLIPDirectionLoss(io.ComfyNode):
    """Whether a picture changes in CLIP's space as one text changes into another (arXiv:2108.00946, 2110.02711)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="CLIP Direction Loss (Steer)",
            category="Steer/losses",
            description="How far a picture's change is from the change between two texts, by CLIP: for edits, in which "
            "all that the texts have in common is to stay. For Gradient Guider. Text and vision tower have to be of "
            "the same CLIP.",
            **where_known(search_aliases=["directional clip", "diffusionclip", "stylegan-nada", "clip edit"]),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=VISION),
                io.Vae.Input("vae", tooltip="The model's VAE: CLIP sees what it decodes."),
                io.Clip.Input("clip", tooltip="The text tower of the same CLIP, from CLIPLoader (clip_l for ViT-L)."),
                io.Image.Input(
                    "image",
                    tooltip="The picture that is edited: one for all, or one for each of the batch. Of the size that "
                    "is sampled.",
                ),
                io.String.Input("source_text", multiline=True, tooltip="What the picture shows."),
                io.String.Input("target_text", multiline=True, tooltip="What it should show instead."),
                cutouts_input(),
                smallest_input(),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )

    @classmethod
    def validate_inputs(cls, source_text, target_text):
        return answer_of((check_texts, source_text, target_text))

    @classmethod
    def execute(
        cls, clip_vision, vae, clip, image, source_text, target_text, cutouts, smallest_cutout=0.0
    ) -> io.NodeOutput:
        check_texts(source_text, target_text)
        check_picture("image", image)
        source, target = (host_clip.text_target(clip, clip_vision, text) for text in (source_text, target_text))
        wanted = change(source, target)
        check_wanted(wanted)
        return io.NodeOutput(CLIPDirectionLoss(clip_vision, vae, image, wanted, cutouts, smallest_cutout))


NODES = [SteerCLIPDirectionLoss]
