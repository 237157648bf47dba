"""Stitch: an edit pasted into its source with a soft edge."""

from comfy_api.latest import io

from ..pictures.stitch import feathered, stitch
from .host import log, progress
from .picture_inputs import checked_and_broadcast
from .schema import where_known

NODE = "SteerStitch"


class SteerStitch(io.ComfyNode):
    """A paste with a feathered edge, mixed in linear light."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Stitch (Steer)",
            category="Steer/background",
            description="Puts what was edited back into the source with a soft edge. Outside it the picture is the "
            "source exactly. Where the two differ at the edge a seam can show: Poisson Blend hides it.",
            **where_known(search_aliases=["paste back", "composite", "uncrop", "keep background", "feather"]),
            inputs=[
                io.Image.Input("source", tooltip="The picture whose background is to stay."),
                io.Image.Input("edited", tooltip="The whole edited picture, of the same size."),
                io.Mask.Input("mask", tooltip="1 takes the edit, 0 the source. In pixels or in latents."),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=-256,
                    max=256,
                    tooltip="Width of the soft edge in pixels. It lies inside the mask, so that nothing outside "
                    "changes; with a negative value outside, so that nothing of what was there shows inside.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The source with the edit in it.")],
        )

    @classmethod
    def execute(cls, source, edited, mask, feather) -> io.NodeOutput:
        source, edited, mask = checked_and_broadcast(source, edited, mask)
        soft = feathered(mask, feather)
        progress.tell_empty(NODE, "mask", mask, "the source stays as it is")
        for number, (before, after) in enumerate(zip(mask.amax((1, 2)), soft.amax((1, 2)), strict=True), 1):
            if after < before:
                log.warning("%s: mask %d is thinner than twice the feather: the edit fades, lower it", NODE, number)
        return io.NodeOutput(stitch(source, edited, soft))


NODES = [SteerStitch]
