"""ComfyUI nodes, one file per method. Only this package imports the host, and only `nodes/host/` knows its insides."""

from comfy_api.latest import ComfyExtension, io

from . import (
    attention_maps,
    blended_diffusion,
    classifier,
    clip_guidance,
    ddim,
    diffedit,
    gradient_guidance,
    guidance,
    inversion,
    inversion_file,
    null_text,
    paint_with_words,
    poisson_blend,
    prompt_to_prompt,
    reconstruct,
    repaint,
    sdedit,
    stitch,
    trajectory_blend,
)
from .node import check_inputs

METHODS = (
    guidance,
    ddim,
    sdedit,
    repaint,
    blended_diffusion,
    inversion,
    inversion_file,
    null_text,
    prompt_to_prompt,
    attention_maps,
    paint_with_words,
    gradient_guidance,
    clip_guidance,
    classifier,
    diffedit,
    trajectory_blend,
    stitch,
    poisson_blend,
    reconstruct,
)

for method in METHODS:
    for node in method.NODES:
        check_inputs(node)


class SteerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for method in METHODS for node in method.NODES]
