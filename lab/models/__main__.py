"""`python -m lab.models COMMAND`: train a model again, or say how good it is.

The checkpoint is `shapes_unet.train_vae`, then `shapes_unet.train`; the others are trained on it.
"""

import sys
from importlib import import_module

from ..package import load_steer

COMMANDS = (
    "shapes_unet.train_vae", "shapes_unet.train", "shapes_unet.check", "clip.train", "clip.check", "classifier.train",
    "lora.train", "lora.check", "hypernetwork.train", "hypernetwork.check", "controlnet.train", "controlnet.check",
    "t2i_adapter.train", "t2i_adapter.check", "inpainting.train", "inpainting.check", "shapes_flux.train",
    "shapes_flux.check", "shapes_wan.train_vae", "shapes_wan.train", "shapes_wan.check",
    "depth.train", "depth.check",
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Load ComfyUI, then run the command's own `main` (its modules import ComfyUI); the exit code."""
    if not argv or argv[0] not in COMMANDS:
        print(f"{__doc__}\nUse one of: {', '.join(COMMANDS)}. Each explains itself with --help.", file=sys.stderr)
        return 2
    load_steer()
    find = import_module("steer.lab.comfy.find")
    folder = find.find_host()
    if folder is None:
        print("This needs ComfyUI: set COMFYUI_PATH to a checkout, or clone it to ~/comfy/ComfyUI", file=sys.stderr)
        return 2
    find.load_host(folder)
    import_module(f"steer.lab.models.{argv[0]}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
