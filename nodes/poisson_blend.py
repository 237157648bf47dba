"""Poisson blending: the edit takes on the source's colours at its edge."""

import torch
from comfy_api.latest import io

from ..pictures.poisson_blend import poisson_blend
from .host import log, progress
from .picture_inputs import checked_and_broadcast
from .schema import where_known

NODE = "SteerPoissonBlend"


class SteerPoissonBlend(io.ComfyNode):
    """Poisson image editing (Perez, Gangnet and Blake 2003)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Poisson Blend (Steer)",
            category="Steer/background",
            description="Puts what was edited back into the source without a seam: inside the mask the edit's "
            "gradients, at its edge the source's colours. A difference there is spread over the whole edit, which can "
            "tint it. Outside the mask the picture is the source exactly.",
            **where_known(
                search_aliases=[
                    "paste back",
                    "composite",
                    "seamless",
                    "seamless clone",
                    "keep background",
                    "feather",
                ]
            ),
            inputs=[
                io.Image.Input("source", tooltip="The picture whose background is to stay."),
                io.Image.Input("edited", tooltip="The whole edited picture, of the same size."),
                io.Mask.Input(
                    "mask", tooltip="Above one half takes the edit, the rest is the source. In pixels or in latents."
                ),
            ],
            outputs=[io.Image.Output(tooltip="The source with the edit in it.")],
        )

    @classmethod
    def execute(cls, source, edited, mask) -> io.NodeOutput:
        source, edited, mask = checked_and_broadcast(source, edited, mask)
        progress.tell_empty(NODE, "mask", mask > 0.5, "the source stays as it is")
        bar, blended = progress.bar(len(source)), []
        for number, (before, after, inside) in enumerate(zip(source, edited, mask > 0.5, strict=True), 1):
            progress.stop_if_interrupted()
            if inside.all():
                log.warning("%s: mask %d covers everything, so the edit is returned as it is", NODE, number)
            blended.append(poisson_blend(before, after, inside))
            bar.update(1)
        return io.NodeOutput(torch.stack(blended))


NODES = [SteerPoissonBlend]
