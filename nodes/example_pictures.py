"""The pictures that the templates load, put where the host's Load Image and its trainer find them."""

import logging
from pathlib import Path

import folder_paths

from ..files.safetensors import write_whole

PICTURES = Path(__file__).resolve().parents[1] / "example_workflows" / "pictures"
TRAINING = "steer_photos"
CAPTIONS = {
    "steer_astronaut.webp": "a photo of an astronaut in an orange suit",
    "steer_cat.webp": "a photo of a cat",
    "steer_coffee.webp": "a photo of a red cup of coffee on a wooden table",
    "steer_rocket.webp": "a photo of a rocket on its launch pad",
}
"""What the template that trains a LoRA learns: pictures in a folder of their own, with their captions beside them."""


def copy_example_pictures() -> None:
    """Copy those that the host's input folder lacks. Where it cannot be written to, the log says so."""
    target = Path(folder_paths.get_input_directory())
    try:
        for picture in PICTURES.glob("steer_*"):
            _write(target / picture.name, picture.read_bytes())
        (target / TRAINING).mkdir(exist_ok=True)
        for name, caption in CAPTIONS.items():
            path = target / TRAINING / name
            _write(path, (PICTURES / name).read_bytes())
            _write(path.with_suffix(".txt"), caption.encode())
    except OSError as error:
        logging.warning("Steer: the templates' pictures could not be copied to %s: %s", target, error)


def _write(path: Path, content: bytes) -> None:
    if not path.exists():
        write_whole(path, [content])
