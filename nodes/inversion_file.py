"""Inversions as files: saved into the host's output folder, loaded from there or from its input folder."""

import os
from errno import ENAMETOOLONG
from hashlib import sha256
from math import nan

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..files import inversion_file
from ..files.safetensors import EXTENSION
from .host import errors_of, inverted, log
from .schema import where_known
from .wires import SteerInversion

SAVE = "SteerSaveInversion"
LOAD = "SteerLoadInversion"
OUTPUT = " [output]"


class SteerSaveInversion(io.ComfyNode):
    """Keeps an inversion for later."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=SAVE,
            display_name="Save Inversion (Steer)",
            category="Steer/inversion",
            description="Saves an inversion, and the null-text conditioning that goes with it, as a safetensors file "
            "in the output folder. The same inversion gives the same file.",
            **where_known(search_aliases=["store trajectory", "cache inversion"]),
            inputs=[
                SteerInversion.Input("inversion", tooltip="What SteerDDIMInversion found."),
                io.Conditioning.Input(
                    "null_text",
                    optional=True,
                    tooltip="The conditioning of SteerNullText for this inversion, to keep in the same file.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="steer/inversion",
                    tooltip="Where in the output folder; a number and .safetensors are added. %year% and the like work "
                    "as for the host's save nodes.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion, filename_prefix, null_text=None) -> io.NodeOutput:
        inverted.latent_format_of(inversion)
        try:
            folder, subfolder, name, number = next_file(filename_prefix)
            name, removed = inversion_file.save_numbered(folder, name, number, inversion, null_text)
            size = os.path.getsize(os.path.join(folder, name))
        except OSError as error:
            if error.errno == ENAMETOOLONG:
                raise ValueError(f"filename_prefix is {filename_prefix[:100]!r}..., too long for a file") from error
            raise OSError(f"{SAVE}: {filename_prefix!r} could not be saved, and no file is left: {error}") from error
        if removed:
            log.info("%s: removed what killed processes left unfinished: %s", SAVE, ", ".join(removed))
        listed = f"{subfolder}/{name}".replace(os.sep, "/").lstrip("/") + OUTPUT
        text = f"saved {size / 2**20:.1f} MiB, {len(inversion.sigmas)} levels; {LOAD} lists it as {listed}"
        return io.NodeOutput(ui={"text": (text,), "files": [ui.SavedResult(name, subfolder, io.FolderType.output)]})


class SteerLoadInversion(io.ComfyNode):
    """Takes up an inversion where it was left, bit for bit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LOAD,
            display_name="Load Inversion (Steer)",
            category="Steer/inversion",
            description="Loads an inversion from the input or output folder, with everything that sampling from it "
            "takes. The file is checked in full before anything of it is used.",
            **where_known(search_aliases=["store trajectory", "cache inversion"]),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=inversion_files(),
                    tooltip="A file of SteerSaveInversion. [output] marks those in the output folder; refresh the "
                    "editor (R) to see new ones.",
                )
            ],
            outputs=[
                SteerInversion.Output(tooltip="The inversion as it was saved."),
                io.Latent.Output(tooltip="latent_image for SamplerCustomAdvanced, together with this noise."),
                io.Noise.Output(tooltip="The noise that makes the sampling start exactly at the inverted latent."),
                io.Sigmas.Output(tooltip="The noise levels of the inversion, descending: sample with these."),
                io.Conditioning.Output(
                    display_name="null_text",
                    tooltip="The negative conditioning that was saved along. Where the file has none, nodes that use "
                    "this fail and say so.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file):
        # None stands for a connected input, which is known only later
        try:
            return file is None or bool(file_path(file))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file):
        # NaN never equals itself, so the host loads a file anew whose name is connected
        return nan if file is None else file_digest(file_path(file))

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path = file_path(file)
        with errors_of(f"file {file!r} is refused"):
            inversion, null_text = inversion_file.load(path)
            inverted.latent_format_of(inversion)
        latent, noise = inverted.start(inversion)
        null_text = NoNullText(file) if null_text is None else null_text
        return io.NodeOutput(inversion, latent, noise, torch.tensor(inversion.sigmas), null_text)


class NoNullText:
    """The null-text output of a file that holds none: a node that reads it gets an error, other nodes run.

    With the host's ExecutionBlocker a prompt of the API would end as a success, without its pictures.
    """

    def __init__(self, file: str):
        self.file = file

    def _refuse(self, *_):
        raise ValueError(
            f"{LOAD}: file {self.file!r} holds no null-text conditioning; save it again with null_text connected, "
            "or use another negative"
        )

    __iter__ = __len__ = __getitem__ = __add__ = __radd__ = _refuse


def next_file(prefix: str) -> tuple[str, str, str, int]:
    """(folder, the same below the output folder, name, number after the largest there is); the folder is made."""
    output = folder_paths.get_output_directory()
    folder, name = os.path.split(os.path.normpath(prefix))
    if "\0" in prefix or name in ("", ".", "..") or not inside(output, os.path.join(output, folder)):
        raise ValueError(
            f"filename_prefix is {prefix!r}; a name in the output folder is needed, such as 'steer/inversion'"
        )
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
    return folder, subfolder, name, counter


def inversion_files() -> list[str]:
    """The safetensors files of the input folder, then those of the output folder with the host's mark."""
    listed = []
    for root, mark in ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), OUTPUT)):
        paths = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
        found = [path for path in paths if is_loadable(root, path)]
        listed += sorted(os.path.relpath(path, root).replace(os.sep, "/") + mark for path in found)
    return listed


def file_path(file: str) -> str:
    """The file's real path. ValueError unless it is a safetensors file that lies in the input or output folder."""
    name, root = folder_paths.annotated_filepath(str(file))
    root = root or folder_paths.get_input_directory()
    roots = (folder_paths.get_input_directory(), folder_paths.get_output_directory())
    path = os.path.join(root, name)
    if root not in roots or not is_loadable(root, path):
        raise ValueError(
            f"file is {str(file)[:200]!r}; choose a {EXTENSION} file that lies in the input folder, or in the output "
            f"folder (named with{OUTPUT} at the end)"
        )
    return os.path.realpath(path)


def is_loadable(root: str, path: str) -> bool:
    return path.lower().endswith(EXTENSION) and inside(root, path) and os.path.isfile(path)


def inside(root: str, path: str) -> bool:
    """Whether the path lies below the folder once links and '..' are followed."""
    # not left to the host: older ones do not look
    try:
        root, path = os.path.realpath(root), os.path.realpath(path)
        return os.path.commonpath((root, path)) == root
    except (ValueError, OSError):
        return False


def file_digest(path: str) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


NODES = [SteerSaveInversion, SteerLoadInversion]
