"""An inversion as a file: safetensors, versioned, written whole or not at all, checked in full before it is used.

Any number of processes may save into one folder at once: none takes the name of another's file.

Version 1 holds the tensors `sigmas` (float64), `latents.i` for each level, and for entry i of a null-text
conditioning `null_text.i` and `null_text.i.pooled_output` (all float32); all else is text in the metadata, with a
SHA-256 over everything. The same inversion gives the same bytes.
"""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from itertools import count
from math import inf
from time import time
from typing import BinaryIO
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .core import check_tensor
from .inversion import Inversion
from .noise_law import NoiseLaw

VERSION = "1"
LAWS = {"variance_exploding": False, "rectified_flow": True}
KINDS = {"law": str, "noise_scale": float, "latent_format": str, "from_top": bool, "null_text": list | None}
METADATA, CONTENTS = ["contents", "sha256", "steer_inversion"], sorted(KINDS)
EXTENSION = ".safetensors"
PARTIAL = re.compile(r".+_\d{5,}_\.safetensors(\.[0-9a-f]{32})?\.part", re.DOTALL)
"""The names of unfinished files, which have had 32 more digits."""
ABANDONED = 24 * 3600
"""Seconds without a write, after which an unfinished file is one of a process that was killed."""
MAX_HEADER = 16 * 2**20
MAX_BYTES = 16 * 2**30
ADVICE = "choose one that SteerSaveInversion wrote"
DTYPES = {torch.float32: "F32", torch.float64: "F64"}

NullText = list[list]
"""The host's CONDITIONING: [tensor (batch, tokens, channels), options] for each window."""

MAX_NUMBER = 1_000_000
SIGMAS = ("timestep_start", "timestep_end")
PERCENTS = ("start_percent", "end_percent")
CLIP_PERCENTS = ("clip_start_percent", "clip_end_percent")
SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
WINDOWS = (SIGMAS, PERCENTS, CLIP_PERCENTS)
OPTIONS = {
    **dict.fromkeys(SIGMAS, (0.0, inf)),
    **dict.fromkeys(PERCENTS + CLIP_PERCENTS, (0.0, 1.0)),
    **dict.fromkeys((*SIZES, "aesthetic_score", "guidance"), (0.0, MAX_NUMBER)),
}
"""What a null-text entry may carry besides `pooled_output`, and from where to where."""


def save(path: str | os.PathLike, inversion: Inversion, null_text: NullText | None = None) -> None:
    """Writes the file, whole or not at all, in place of one that was there.

    Raises ValueError, before anything is written, for what `load` would refuse.
    """
    write_whole(path, _parts(inversion, null_text))


def save_numbered(
    folder: str, name: str, number: int, inversion: Inversion, null_text: NullText | None = None
) -> tuple[str, list[str]]:
    """Writes `name_number_.safetensors`, whole or not at all, with the first number from this one on that is free.

    Returns the file's name, and those of unfinished files that killed processes left in the folder, which are removed.
    Raises ValueError, before anything is written, for what `load` would refuse.
    """
    parts = _parts(inversion, null_text)
    removed = _sweep(folder)
    path, file = _claimed(os.path.join(folder, f"{name}_{free:05}_{EXTENSION}") for free in count(number))
    _finish(file, parts, path)
    return os.path.basename(path), removed


def _parts(inversion: Inversion, null_text: NullText | None) -> list[bytes | memoryview]:
    """The contents of the file."""
    tensors, contents = _contents(inversion, null_text)
    return [_header(tensors, contents), *map(_bytes, tensors.values())]


def write_whole(path: str | os.PathLike, parts: Iterable[bytes | memoryview]) -> None:
    """Writes the parts beside the file and renames it once it is on the disk; a failure leaves nothing behind."""
    _finish(open(f"{os.fspath(path)}.{uuid4().hex}.part", "xb"), parts, path)


def _claimed(paths: Iterable[str]) -> tuple[str, BinaryIO]:
    """The first path that is free, and a new file beside it, open for writing.

    A path belongs to the process that made the file beside it, since only one can; until that file is renamed to the
    path or removed, everybody else takes another path. File systems without links can do this too.
    """
    for path in paths:
        try:
            file = open(f"{path}.part", "xb")
        except FileExistsError:
            continue
        # asked after the claim: before it, another process could have finished the path in between
        if not os.path.lexists(path):
            return path, file
        _abandon(file)


def _finish(file: BinaryIO, parts: Iterable[bytes | memoryview], path: str | os.PathLike) -> None:
    """Writes the parts and renames the file to the path once it is on the disk; a failure leaves nothing behind."""
    try:
        with file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        _abandon(file)
        raise


def _abandon(file: BinaryIO) -> None:
    with suppress(OSError):
        file.close()
    with suppress(OSError):
        os.unlink(file.name)


def _sweep(folder: str) -> list[str]:
    """Removes what killed processes left unfinished in the folder, and returns the names."""
    removed = []
    for entry in [entry for entry in os.scandir(folder) if PARTIAL.fullmatch(entry.name)]:
        with suppress(OSError):  # another process was first
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < time() - ABANDONED:
                os.unlink(entry.path)
                removed.append(entry.name)
    return removed


def load(path: str | os.PathLike) -> tuple[Inversion, NullText | None]:
    """The inversion, and the null-text conditioning if the file has one. ValueError for a file that is not all right.

    The tensors are copies: the file may change afterwards.
    """
    try:
        check_is_safetensors(path, MAX_BYTES, ADVICE)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            contents = _checked_contents(metadata)
            tensors = {name: _tensor(file, name) for name in _expected_names(file.keys(), contents["null_text"])}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it cannot be read as safetensors ({error}); copy or save it again") from error
    if _digest(tensors, metadata["contents"]) != metadata["sha256"]:
        raise ValueError("its checksum does not match, so it was damaged or changed; copy or save it again")
    if tensors["sigmas"].ndim != 1:
        raise ValueError(f"sigmas has the shape {tuple(tensors['sigmas'].shape)}; a list is needed")
    latents = tuple(tensor for name, tensor in tensors.items() if name.startswith("latents."))
    law = NoiseLaw(LAWS[contents["law"]], contents["noise_scale"])
    sigmas = tuple(tensors["sigmas"].tolist())
    inversion = Inversion(sigmas, latents, law, contents["latent_format"], contents["from_top"])
    check_latents(inversion)
    null_text = _with_tensors(contents["null_text"], tensors)
    if null_text is not None:
        check_null_text(null_text)
    return inversion, null_text


def check_latents(inversion: Inversion) -> None:
    """ValueError unless the latents, which agree with each other, are float32 and (batch, channels, ...)."""
    shape = tuple(inversion.latents[0].shape)
    check_tensor("latents[0]", inversion.latents[0], (None,) * max(len(shape), 3))
    for index, latent in enumerate(inversion.latents):
        check_tensor(f"latents[{index}]", latent, shape)


def check_null_text(null_text: NullText) -> None:
    """ValueError unless every entry is finite, of one width, and carries only what the file can hold."""
    if not null_text:
        raise ValueError("null_text has no entries; leave it unconnected, or connect SteerNullText")
    width = None
    for index, (cond, options) in enumerate(null_text):
        name = f"null_text[{index}]"
        check_tensor(name, cond, (None, None, width))
        width = cond.shape[-1]
        for key, value in options.items():
            _check_option(name, key, value)
        for start, end in WINDOWS:
            if start in options and end in options and not _follows(options[start], options[end], start):
                raise ValueError(f"{name} has a window that ends, at {options[end]:g}, before it starts, at "
                                 f"{options[start]:g} ({start}, {end})")  # fmt: skip


def _follows(start: float, end: float, key: str) -> bool:
    return start >= end if key in SIGMAS else start <= end


def _check_option(name: str, key: str, value) -> None:
    if key == "pooled_output":
        if value is not None:
            check_tensor(f"{name} pooled_output", value, (None, None))
        return
    if key not in OPTIONS:
        raise ValueError(
            f"{name} carries {key!r}, which a file cannot hold; connect a null-text made without control nets, hooks, "
            "areas and masks, and apply them after loading"
        )
    low, high = OPTIONS[key]
    # an int is bounded even where infinity is welcome: one of 400 digits is no float
    number = isinstance(value, float) or type(value) is int and abs(value) <= MAX_NUMBER
    if not number or not low <= value <= high:
        raise ValueError(f"{name} has {key} = {str(value)[:40]}; a number from {low:g} to {high:g} is needed")


def _contents(inversion: Inversion, null_text: NullText | None) -> tuple[dict[str, Tensor], dict]:
    """(tensors by name, the rest as JSON values)."""
    tensors = {"sigmas": torch.tensor(inversion.sigmas, dtype=torch.float64)}
    check_latents(inversion)
    tensors |= {f"latents.{index}": latent for index, latent in enumerate(inversion.latents)}
    contents = {
        "law": "rectified_flow" if inversion.law.flow else "variance_exploding",
        "noise_scale": float(inversion.law.noise_scale),
        "latent_format": inversion.latent_format,
        "from_top": bool(inversion.from_top),
        "null_text": None,
    }
    if null_text is not None:
        null_text = [[_widened(cond), _widened_options(options)] for cond, options in null_text]
        check_null_text(null_text)
        contents["null_text"] = [_without_tensors(index, *entry, tensors) for index, entry in enumerate(null_text)]
    return tensors, contents


def _widened(value):
    """A half-precision tensor as float32, which holds it exactly; anything else as it is, for the checks to judge."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return value.detach().to("cpu", torch.float32) if half else value


def _widened_options(options: dict) -> dict:
    return options | {"pooled_output": _widened(options["pooled_output"])} if "pooled_output" in options else options


def _without_tensors(index: int, cond: Tensor, options: dict, tensors: dict[str, Tensor]) -> dict:
    """The options as JSON values; the entry's tensors go into `tensors`."""
    tensors[f"null_text.{index}"] = cond
    pooled = options.get("pooled_output")
    if pooled is not None:
        tensors[f"null_text.{index}.pooled_output"] = pooled
    return {key: pooled is not None if key == "pooled_output" else value for key, value in options.items()}


def _with_tensors(entries: list[dict] | None, tensors: dict[str, Tensor]) -> NullText | None:
    """The conditioning: the inverse of `_without_tensors`."""
    if entries is None:
        return None
    return [
        [
            tensors[f"null_text.{index}"],
            {
                key: tensors.get(f"null_text.{index}.pooled_output") if key == "pooled_output" else value
                for key, value in options.items()
            },
        ]
        for index, options in enumerate(entries)
    ]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(tensors: dict[str, Tensor], contents: str) -> str:
    """SHA-256 of everything that is stored."""
    digest = sha256(contents.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _header(tensors: dict[str, Tensor], contents: dict) -> bytes:
    """The beginning of the file. Written here since the library's order of the metadata varies, and it copies all."""
    stored = json.dumps(contents, sort_keys=True)
    metadata = {"steer_inversion": VERSION, "contents": stored, "sha256": _digest(tensors, stored)}
    header, end = {"__metadata__": metadata}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or 8 + len(text) + end > MAX_BYTES:
        raise ValueError(f"the inversion would take {end / 2**30:.1f} GiB; a file holds up to {MAX_BYTES >> 30} GiB")
    return len(text).to_bytes(8, "little") + text


def check_is_safetensors(path: str | os.PathLike, max_bytes: int, advice: str) -> None:
    """ValueError, ending with the advice, unless the file begins as safetensors do and is small enough to be loaded."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    if first != b"{" or not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError(f"it is not a safetensors file; {advice}")
    if size > max_bytes:
        raise ValueError(f"it has {size / 2**30:.1f} GiB; up to {max_bytes >> 30} GiB are loaded; {advice}")


def _checked_contents(metadata: dict[str, str]) -> dict:
    """The JSON values, each of a known kind; the options of the null-text entries are looked at later."""
    version = metadata.get("steer_inversion")
    if version is None:
        raise ValueError(f"it holds no inversion; {ADVICE}")
    if version != VERSION:
        raise ValueError(f"it has version {version[:20]!r}, and this Steer reads version {VERSION}; update Steer")
    try:
        contents = json.loads(metadata.get("contents", ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its description is damaged ({error}); copy or save it again") from error
    whole = sorted(metadata) == METADATA and isinstance(contents, dict) and sorted(contents) == CONTENTS
    if not whole or not all(isinstance(contents[key], kind) for key, kind in KINDS.items()):
        raise ValueError("its description is not that of an inversion; save it again")
    if contents["law"] not in LAWS:
        raise ValueError(f"its noise law is {contents['law'][:40]!r}; known are {' and '.join(LAWS)}")
    if not all(isinstance(entry, dict) for entry in contents["null_text"] or []):
        raise ValueError("its null-text entries are damaged; save it again")
    return contents


def _expected_names(names: list[str], entries: list[dict] | None) -> list[str]:
    """The names the file has to have, in the order they were written. ValueError when it has others."""
    levels = sum(name.startswith("latents.") for name in names)
    expected = ["sigmas", *(f"latents.{index}" for index in range(levels))]
    for index, options in enumerate(entries or []):
        expected.append(f"null_text.{index}")
        if options.get("pooled_output"):
            expected.append(f"null_text.{index}.pooled_output")
    odd = sorted(set(expected) ^ set(names))
    if odd:
        raise ValueError(f"it has too many or too few tensors, such as {', '.join(odd)[:100]!r}; save it again")
    return expected


def _tensor(file, name: str) -> Tensor:
    wanted = "F64" if name == "sigmas" else "F32"
    stored = file.get_slice(name).get_dtype()
    if stored != wanted:
        raise ValueError(f"{name} is stored as {stored}; {wanted} is needed")
    return file.get_tensor(name).clone()
