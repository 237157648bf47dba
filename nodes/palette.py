"""Palette guidance: the colours of another picture, wherever they are."""

from comfy_api.latest import io

from .inputs import whole
from .picture_inputs import check_picture
from .runs.palette import PaletteLoss
from .schema import advanced, where_known
from .wires import SteerLoss

NODE = "SteerPaletteLoss"


class SteerPaletteLoss(io.ComfyNode):
    """The sliced Wasserstein distance of the picture's colours to another's (arXiv:2503.19034)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Palette Loss (Steer)",
            category="Steer/losses",
            description="How far the picture's colours, and how much there is of each, are from those of another one, "
            "wherever they are in it. For Gradient Guider.",
            **where_known(
                search_aliases=[
                    "color palette",
                    "color transfer",
                    "colour transfer",
                    "color match",
                    "color grading",
                    "sliced wasserstein",
                    "sw-guidance",
                ]
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE: the colours of what it decodes are compared."),
                io.Image.Input(
                    "image",
                    tooltip="The colours to come to, and how much of each: one picture for all, or one for each of the "
                    "batch. Of any size; stripes as wide as there is to be of each colour will do.",
                ),
                advanced(
                    whole(
                        "directions", 64, 4096, "How many random directions of colour are compared in each step. More "
                        "is steadier; it costs little beside the VAE.", least=1,
                    )
                ),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, vae, image, directions) -> io.NodeOutput:
        check_picture("image", image)
        return io.NodeOutput(PaletteLoss(vae, image, directions))


NODES = [SteerPaletteLoss]
