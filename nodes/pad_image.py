"""Room for outpainting: a picture or a clip made larger, where what is new repeats the edge."""

from comfy_api.latest import io

from ..pictures.pad_image import padded
from .picture_inputs import check_picture, sides
from .schema import shown, where_known

NODE = "SteerPadImage"
STEP, MOST = 8, 16384


def pixels(side: str) -> io.Int.Input:
    """How much is added at a side."""
    return io.Int.Input(
        side,
        default=0,
        min=0,
        max=MOST,
        step=STEP,
        tooltip=f"New pixels at the {side}. Multiples of 8 are whole latent pixels.",
    )


class SteerPadImage(io.ComfyNode):
    """Room for outpainting: the picture's edges, repeated."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Pad Image (Steer)",
            category="Steer/masks",
            description="Makes a picture or a clip larger. What is new repeats the edge until it is drawn, "
            "not gray: a VAE mixes what lies beside the edge into what is kept.",
            **where_known(
                has_intermediate_output=True,
                search_aliases=["expand image", "extend canvas", "widen picture", "pad edges"],
            ),
            inputs=[
                io.Image.Input("image", tooltip="The picture, or the frames of a clip."),
                *map(pixels, ("left", "top", "right", "bottom")),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The larger picture, for VAE Encode."),
                io.Mask.Output(
                    tooltip="1 new, 0 given, with a hard edge: for Set Latent Noise Mask, of a clip for Frame Mask."
                ),
            ],
        )

    @classmethod
    def execute(cls, image, left, top, right, bottom) -> io.NodeOutput:
        check_picture("image", image)
        if not left + top + right + bottom:
            raise ValueError("left, top, right and bottom are 0, so nothing is new; raise one of them")
        larger, mask = padded(image, left, top, right, bottom)
        return io.NodeOutput(larger, mask, ui=shown(f"{sides(image)} becomes {sides(larger)}"))


NODES = [SteerPadImage]
