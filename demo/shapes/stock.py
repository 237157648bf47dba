"""The checkpoint in the host, through its stock loader."""

from pathlib import Path

import folder_paths
import nodes

from .. import shapes_loader
from . import CHECKPOINT


def load(checkpoint: Path = CHECKPOINT):
    """(model, clip, vae) of a checkpoint of this structure."""
    shapes_loader.register()
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]
