"""The models made of the world, one folder each: a card, a network, a trainer, a check and, if need be, a loader.

As a custom node pack this folder brings no node: loading it teaches ComfyUI's stock loaders the models whose sizes
they cannot tell from a file. It works under any module name, so the folder can be linked into `custom_nodes`.
"""


def register() -> None:
    """Make the host's loaders know the models; doing so again, under whatever module name, changes nothing."""
    from .clip import loader as clip
    from .shapes_flux import loader as shapes_flux
    from .shapes_unet import loader as shapes_unet
    from .shapes_wan import loader as shapes_wan
    from .t2i_adapter import loader as t2i_adapter

    shapes_unet.register()
    shapes_flux.register()
    shapes_wan.register()
    clip.register()
    t2i_adapter.register()


def comfy_entrypoint():
    """What the host asks a pack for: here no nodes."""
    from comfy_api.latest import ComfyExtension

    class Loaders(ComfyExtension):
        async def get_node_list(self):
            return []

    register()
    return Loaders()
