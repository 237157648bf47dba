"""Runs benchmarks in this process, inside the host, and writes their tables."""

import importlib
import platform
import sys
import time
from pathlib import Path

import torch

from ..lab.comfy.find import find_host, gpu_there, load_host

NAMES = (
    "attention_cost", "background", "clip_attention", "clip_edits", "clips", "depth", "diffedit", "direct_edit",
    "fit_lora", "gradient_cost", "gradient_guidance", "heatmaps", "host_guidance", "inpainting", "inpainting_calls",
    "inpainting_exact", "inpainting_peers", "inversion", "large_models", "layout", "load", "measurement",
    "measurement_exact", "null_text", "outpainting", "overhead", "poisson_blend", "prompt_to_prompt", "reconstruct",
    "sdedit", "training", "transformer_cost",
)  # fmt: skip
NEEDS_GPU = {"large_models"}
FOLDER = Path(__file__).parent


def main(names: list[str]) -> int:
    """Runs the named benchmarks (all when none is named); 2 when there is no host or no such benchmark."""
    unknown = set(names) - set(NAMES)
    host = find_host()
    if unknown or host is None:
        print(f"unknown: {sorted(unknown)}; there are {NAMES}" if unknown else "the benchmarks need ComfyUI: set "
              "COMFYUI_PATH, or clone it to ~/comfy/ComfyUI", file=sys.stderr)  # fmt: skip
        return 2
    load_host(host)
    importlib.import_module("comfy.utils").PROGRESS_BAR_ENABLED = False
    for name in names or NAMES:
        if name in NEEDS_GPU and not gpu_there(torch):
            print(f"{name} is left out: it needs a GPU (`python -m lab.gpu run --device cpu` tries it, small)")
            continue
        started = time.monotonic()
        with torch.inference_mode():
            table = importlib.import_module(f"steer.bench.{name}").run()
        footer = f"{machine()}; {time.monotonic() - started:.0f} s."
        (FOLDER / f"{name}.md").write_text(f"{table}\n\n{footer}\n")
        print(f"{table}\n\n{footer}\n")
    return 0


def machine() -> str:
    import comfyui_version

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = f"ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{versions}, {where}"
