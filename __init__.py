"""Steer: training-free control of diffusion models, as ComfyUI nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The host's entry point (V3); `samplers` and `attention` import without the host."""
    from .nodes import SteerExtension
    from .nodes.example_pictures import copy_example_pictures

    copy_example_pictures()
    return SteerExtension()
