"""The pictures that the templates load, put where the host's Load Image finds them."""

import logging
import os
import shutil
from pathlib import Path
from uuid import uuid4

import folder_paths

PICTURES = Path(__file__).resolve().parents[1] / "example_workflows" / "pictures"


def copy_example_pictures() -> None:
    """Copy those that the host's input folder lacks. Where it cannot be written to, the log says so."""
    target = Path(folder_paths.get_input_directory())
    try:
        for picture in PICTURES.glob("steer_*"):
            if not (target / picture.name).exists():
                part = target / f"{picture.name}.{uuid4().hex}.part"
                shutil.copyfile(picture, part)
                os.replace(part, target / picture.name)  # whole or not at all
    except OSError as error:
        logging.warning("Steer: the templates' pictures could not be copied to %s: %s", target, error)
