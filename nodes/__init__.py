"""ComfyUI nodes, one file per method. Only this package imports the host, and only `nodes/host/` knows its insides."""

from importlib import import_module

from comfy_api.latest import ComfyExtension, io

from .node import check_inputs

STEMS = (
    "guidance",
    "ddim",
    "sdedit",
    "repaint",
    "langevin",
    "blended_diffusion",
    "inversion",
    "inversion_file",
    "null_text",
    "prompt_to_prompt",
    "attention_maps",
    "paint_with_words",
    "direct_edit",
    "gradient_guidance",
    "clip_guidance",
    "classifier",
    "measurement",
    "palette",
    "style",
    "clip_direction",
    "depth",
    "fit_lora",
    "diffedit",
    "trajectory_blend",
    "frames",
    "pad_image",
    "stitch",
    "poisson_blend",
    "reconstruct",
)
"""The methods, in the order of the menu and the documents."""
METHODS = tuple(import_module(f".{stem}", __name__) for stem in STEMS)
NODES = tuple(node for method in METHODS for node in method.NODES)

for each in NODES:
    check_inputs(each)


class SteerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
