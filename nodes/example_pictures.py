"""The pictures that the templates load, put where the host's Load Image finds them."""

import logging
from pathlib import Path

import folder_paths

from ..files.safetensors import write_whole

PICTURES = Path(__file__).resolve().parents[1] / "example_workflows" / "pictures"


def copy_example_pictures() -> None:
    """Copy those that the host's input folder lacks. Where it cannot be written to, the log says so."""
    target = Path(folder_paths.get_input_directory())
    try:
        for picture in PICTURES.glob("steer_*"):
            if not (target / picture.name).exists():
                write_whole(target / picture.name, [picture.read_bytes()])
    except OSError as error:
        logging.warning("Steer: the templates' pictures could not be copied to %s: %s", target, error)
