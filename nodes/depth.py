"""Depth guidance: the layout in space of another picture, by a depth network."""

from comfy_api.latest import io

from .inputs import whole
from .picture_inputs import check_picture
from .runs.depth import DepthLoss
from .schema import advanced, where_known
from .wires import DepthModel, SteerLoss

NODE = "SteerDepthLoss"


class SteerDepthLoss(io.ComfyNode):
    """The distance of the picture's depth to another's, by Depth Anything 3 or MoGe (arXiv:1907.01341)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Depth Loss (Steer)",
            category="Steer/losses",
            description="How far what is near and far in the picture is from that in another one, by a depth model. "
            "For Gradient Guider. Needs a ComfyUI with Load Depth Anything 3 or Load MoGe Model (0.33 has both).",
            **where_known(
                search_aliases=["depth guidance", "depth anything", "moge", "midas", "layout", "depth control"]
            ),
            inputs=[
                DepthModel.Input(
                    "depth_model",
                    tooltip="From Load Depth Anything 3 or Load MoGe Model. A small one is enough, as Depth Anything 3 "
                    "Small.",
                ),
                io.Vae.Input("vae", tooltip="The model's VAE: the depth of what it decodes is compared."),
                io.Image.Input(
                    "image",
                    tooltip="A picture with the depth to come to: one for all, or one for each of the batch. Of the "
                    "aspect that is sampled. A picture, not a depth map.",
                ),
                advanced(
                    whole("resolution", 504, 2520, "The longer side that the depth model sees. Less is faster.",
                          least=140)
                ),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, depth_model, vae, image, resolution) -> io.NodeOutput:
        check_picture("image", image)
        return io.NodeOutput(DepthLoss(depth_model, vae, image, resolution))


NODES = [SteerDepthLoss]
