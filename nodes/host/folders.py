"""Folders of models that the host does not know of."""

from pathlib import Path

import folder_paths


def add_model_folder(name: str, extension: str) -> None:
    """Has the host look for files of this ending in `models/name`, besides where the user has it look for `name`."""
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir, name)))
    # a folder of a kind that the host does not know has no file endings yet
    folder_paths.folder_names_and_paths[name] = (folder_paths.folder_names_and_paths[name][0], {extension})
