"""Style guidance: textures and strokes like those of another picture, by an early layer of CLIP."""

from comfy_api.latest import io

from .clip_guidance import VISION, cutouts_input, smallest_input
from .host import clip as host_clip
from .inputs import whole
from .picture_inputs import check_picture
from .runs.style import StyleLoss
from .schema import where_known
from .wires import SteerLoss

NODE = "SteerStyleLoss"


class SteerStyleLoss(io.ComfyNode):
    """The distance of two pictures' Gram matrices in an early layer of CLIP (arXiv:1508.06576, 2303.09833)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Style Loss (Steer)",
            category="Steer/losses",
            description="How far the picture's textures, strokes and colours are from those of another one, wherever "
            "they are in it: not what it shows. For Gradient Guider.",
            **where_known(search_aliases=["style transfer", "gram matrix", "texture", "freedom", "reference image"]),
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip=VISION),
                io.Vae.Input("vae", tooltip="The model's VAE: CLIP sees what it decodes."),
                io.Image.Input(
                    "image", tooltip="The style to come to: one picture for all, or one for each of the batch."
                ),
                whole("layer", 3, 100, "The layer that is compared, from the first on. Early ones see strokes and "
                      "colours, late ones things too.", least=1),
                cutouts_input(),
                smallest_input(),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, clip_vision, vae, image, layer, cutouts, smallest_cutout=0.0) -> io.NodeOutput:
        check_picture("image", image)
        host_clip.check_layer(clip_vision, layer)
        return io.NodeOutput(StyleLoss(clip_vision, vae, image, layer, cutouts, smallest_cutout))


NODES = [SteerStyleLoss]
