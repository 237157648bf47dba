"""CLIP guidance by a text or a picture, inside a mask."""

from comfy_api.latest import io

from .host import clip as host_clip
from .inputs import share
from .runs.clip_guidance import CLIPLoss
from .schema import advanced, answer_of, where_known
from .wires import SteerLoss

TEXT, IMAGE = "SteerCLIPTextLoss", "SteerCLIPImageLoss"
VISION = "The vision tower, from Load CLIP Vision."
VAE = "The model's VAE: CLIP sees what it decodes."


def cutouts_input():
    return io.Int.Input(
        "cutouts",
        default=8,
        min=1,
        max=256,
        tooltip="How many random squares of the picture CLIP looks at in each step. More is steadier and slower.",
    )


def smallest_input():
    return advanced(
        share(
            "smallest_cutout",
            0.0,
            "The least side of a cutout, as a share of the picture's shorter side (never below CLIP's own "
            "input size, which is what 0 means). Small cutouts ask for it in every part of the picture, large ones "
            "in the picture as a whole: 0.8 for one subject.",
            optional=True,
        )
    )


def check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("text is empty; say what the picture should show")


class SteerCLIPTextLoss(io.ComfyNode):
    """The spherical distance of the picture's cutouts to a text in CLIP's space (arXiv:2112.10741, 2111.14818)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=TEXT,
            display_name="CLIP Text Loss (Steer)",
            category="Steer/losses",
            description="How far the picture is from a text, by CLIP. For Gradient Guider. Text and vision tower have "
            "to be of the same CLIP.",
            **where_known(search_aliases=["clip guidance", "clip guided", "disco diffusion", "text loss"]),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=VISION),
                io.Vae.Input("vae", tooltip=VAE),
                io.Clip.Input("clip", tooltip="The text tower of the same CLIP, from CLIPLoader (clip_l for ViT-L)."),
                io.String.Input("text", multiline=True, tooltip="What the picture should show."),
                cutouts_input(),
                smallest_input(),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )

    @classmethod
    def validate_inputs(cls, text):
        return answer_of((check_text, text))

    @classmethod
    def execute(cls, clip_vision, vae, clip, text, cutouts, smallest_cutout=0.0) -> io.NodeOutput:
        check_text(text)
        target = host_clip.text_target(clip, clip_vision, text)
        return io.NodeOutput(CLIPLoss(clip_vision, vae, target, cutouts, smallest_cutout))


class SteerCLIPImageLoss(io.ComfyNode):
    """The same distance to another picture."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=IMAGE,
            display_name="CLIP Image Loss (Steer)",
            category="Steer/losses",
            description="How far the picture is from another one in what it shows, by CLIP: not in its pixels. For "
            "Gradient Guider.",
            **where_known(
                search_aliases=[
                    "clip guidance",
                    "clip guided",
                    "style transfer",
                    "reference image",
                    "image prompt",
                ]
            ),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=VISION),
                io.Vae.Input("vae", tooltip=VAE),
                io.Image.Input(
                    "image",
                    tooltip="What to come close to: one for all, or one for each of the batch. Its "
                    "middle square counts.",
                ),
                cutouts_input(),
                smallest_input(),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )

    @classmethod
    def execute(cls, clip_vision, vae, image, cutouts, smallest_cutout=0.0) -> io.NodeOutput:
        target = host_clip.image_target(clip_vision, image)
        return io.NodeOutput(CLIPLoss(clip_vision, vae, target, cutouts, smallest_cutout))


NODES = [SteerCLIPTextLoss, SteerCLIPImageLoss]
