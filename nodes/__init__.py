"""ComfyUI nodes, one file per method. Only this package imports the host, and only `_host` reads its internals."""

from comfy_api.latest import ComfyExtension, io

from . import blended_diffusion, ddim, guidance, inversion, inversion_file, null_text, repaint, sdedit

METHODS = (guidance, ddim, sdedit, repaint, blended_diffusion, inversion, inversion_file, null_text)


class SteerExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for method in METHODS for node in method.NODES]
