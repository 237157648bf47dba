"""`python -m demo.shapes COMMAND`: train the checkpoint (`train_vae`, then `train`) again, or one of its companions.

Those are `train_clip`, `train_classifier`, `train_lora`, `train_controlnet`, `train_t2i_adapter`, `train_inpainting`.
`check`, `check_clip` and `check_companions` say how good they are.
"""

import sys
from importlib import import_module

from ..package import load_steer

COMMANDS = (
    "train_vae", "train", "train_clip", "train_classifier", "train_lora", "train_controlnet", "train_t2i_adapter",
    "train_inpainting", "check", "check_clip", "check_companions",
)  # fmt: skip


def main(argv: list[str]) -> int:
    """Load ComfyUI, then run the command's own `main` (its modules import ComfyUI); the exit code."""
    if not argv or argv[0] not in COMMANDS:
        print(f"{__doc__}\nUse one of: {', '.join(COMMANDS)}. Each explains itself with --help.", file=sys.stderr)
        return 2
    load_steer()
    host = import_module("steer.demo.host")
    folder = host.find_host()
    if folder is None:
        print("This needs ComfyUI: set COMFYUI_PATH to a checkout, or clone it to ~/comfy/ComfyUI", file=sys.stderr)
        return 2
    host.load_host(folder)
    import_module(f"steer.demo.shapes.{argv[0]}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
