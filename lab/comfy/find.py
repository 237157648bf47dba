"""Find the host (ComfyUI) on this machine, and load it into this process. Standard library only at import."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..package import ROOT, VENV

VARIABLE = "COMFYUI_PATH"
FLAGS = "COMFYUI_FLAGS"
DEFAULT = Path("~/comfy/ComfyUI")
CARRIED = VENV / "ComfyUI-0.3.75"  # out of a wheel, by lab/comfy/carried_host.py


def find_host() -> Path | None:
    """The host's folder, or None when there is none or when COMFYUI_PATH is set to nothing.

    Looked for in this order: COMFYUI_PATH; the `custom_nodes` folder this checkout lies in; ~/comfy/ComfyUI; the one
    in the environment, which `lab.env` puts there where there is no other.
    ValueError when COMFYUI_PATH names something that is not a ComfyUI folder.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is not None:
        return _named_host(wanted)
    enclosing = [folder.parent for folder in ROOT.parents if folder.name == "custom_nodes"]
    return next((folder for folder in [*enclosing, DEFAULT.expanduser(), CARRIED] if is_host(folder)), None)


def is_host(folder: Path) -> bool:
    """Whether the folder is a ComfyUI checkout."""
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def load_host(folder: Path, flags: Sequence[str] = ()) -> None:
    """Make the host's modules (`comfy`, `nodes`, `folder_paths`) importable in this process.

    `flags` are those of its command line, such as `--lowvram`, and COMFYUI_FLAGS holds more of them; how it holds
    weights is then as its `main.py` makes it.
    Call it before anything else imports `comfy`. ImportError when another `nodes` is already loaded.
    """
    host = str(folder.resolve())
    sys.path[:] = [host, *(entry for entry in sys.path if entry != host)]
    _parse([*flags, *os.environ.get(FLAGS, "").split()])
    nodes = importlib.import_module("nodes")
    if Path(nodes.__file__).resolve() != Path(host, "nodes.py"):
        raise ImportError(
            f"`import nodes` gave {nodes.__file__} instead of the host's {host}/nodes.py: "
            "call load_steer() and load_host() before anything that imports `nodes`"
        )


def in_host(code: str) -> list[str]:
    """The command of a process in this checkout that loads the package and the host, and then runs this code."""
    load = "from lab.package import load_steer; load_steer(); from steer.lab.comfy.find import find_host, load_host"
    return [sys.executable, "-c", f"{load}; load_host(find_host()); {code}"]


def _named_host(wanted: str) -> Path | None:
    if not wanted.strip():
        return None
    folder = Path(wanted).expanduser()
    if not is_host(folder):
        raise ValueError(
            f"{VARIABLE}={wanted} is not a ComfyUI folder (no main.py and comfy/ in it). Set it to a "
            "ComfyUI checkout, unset it to look in the usual places, or set it to nothing to do without."
        )
    return folder.resolve()


def _parse(flags: Sequence[str]) -> None:
    """Give the host its command line, as whose import it reads it, and do what its `main.py` does with it."""
    import torch

    if not gpu_there(torch):
        flags = [*flags, "--cpu"]  # or the host dies at import
    if "--deterministic" in flags:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, options = sys.argv, importlib.import_module("comfy.options")
    sys.argv = ["main.py", *flags]
    options.enable_args_parsing()
    try:
        cli_args = importlib.import_module("comfy.cli_args")
    finally:
        options.enable_args_parsing(False)
        sys.argv = before
    if getattr(cli_args, "enables_dynamic_vram", bool)():
        _load_weights_as_layers_run()


def _load_weights_as_layers_run() -> None:
    """The host's own way on NVIDIA's GPUs, by a library that has to be there before the rest of the host."""
    control = importlib.import_module("comfy_aimdo.control")
    control.init()
    management = importlib.import_module("comfy.model_management")
    if management.is_nvidia() and control.init_devices(each.index for each in management.get_all_torch_devices()):
        patcher = importlib.import_module("comfy.model_patcher")
        patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
        importlib.import_module("comfy.memory_management").aimdo_enabled = True


def gpu_there(torch) -> bool:
    """Whether torch sees an accelerator that the host would use."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()
