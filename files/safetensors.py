"""Safetensors files: written whole or not at all, also by many processes at once, and looked at before they are read.

Any number of processes may save into one folder at once: none takes the name of another's file.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import count
from time import time
from typing import Any, BinaryIO, Protocol, cast
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor

EXTENSION = ".safetensors"
PARTIAL = re.compile(r".+_\d{5,}_\.safetensors(\.[0-9a-f]{32})?\.part", re.DOTALL)
"""The names of unfinished files, which have had 32 more digits."""
ABANDONED = 24 * 3600
"""Seconds without a write, after which an unfinished file is one of a process that was killed."""
MAX_HEADER = 16 * 2**20
DTYPES = {torch.float32: "F32", torch.float64: "F64"}

StrPath = str | os.PathLike[str]
Parts = Iterable[bytes | memoryview]
"""The contents of a file, piece after piece."""


class Slice(Protocol):
    """A tensor of an open file before it is read."""

    def get_dtype(self) -> str: ...

    def get_shape(self) -> Sequence[int]: ...


class OpenFile(Protocol):
    """A safetensors file open for reading: what the library gives, which declares no types."""

    def metadata(self) -> dict[str, str] | None: ...

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str, /) -> Slice: ...

    def get_tensor(self, name: str, /) -> Tensor: ...


def opened(path: StrPath) -> AbstractContextManager[OpenFile]:
    """Opens a file for reading; SafetensorError or OSError for what cannot be."""
    return cast(AbstractContextManager[OpenFile], safe_open(path, framework="pt"))


def parts_of(tensors: dict[str, Tensor], metadata: dict[str, str], max_bytes: int) -> list[bytes | memoryview]:
    """The contents of a file. ValueError for more than max_bytes.

    The header is written here since the library's order of the metadata varies, and it copies every tensor.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or 8 + len(text) + end > max_bytes:
        raise ValueError(f"the file would take {end / 2**30:.1f} GiB; up to {max_bytes >> 30} GiB are kept")
    return [len(text).to_bytes(8, "little") + text, *map(values, tensors.values())]


def values(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, as they are stored."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_whole(path: StrPath, parts: Parts) -> None:
    """Writes the parts beside the file and renames it once it is on the disk; a failure leaves nothing behind."""
    _finish(open(f"{os.fspath(path)}.{uuid4().hex}.part", "xb"), parts, path)


def write_numbered(folder: str, name: str, number: int, parts: Parts) -> tuple[str, list[str]]:
    """Writes `name_number_.safetensors`, whole or not at all, with the first number from this one on that is free.

    Returns the file's name, and those of unfinished files that killed processes left in the folder, which are removed.
    """
    removed = _sweep(folder)
    path, file = _claimed(os.path.join(folder, f"{name}_{free:05}_{EXTENSION}") for free in count(number))
    _finish(file, parts, path)
    return os.path.basename(path), removed


def check_is_safetensors(path: StrPath, max_bytes: int, advice: str) -> None:
    """ValueError, ending with the advice, unless the file begins as safetensors do and is small enough to be loaded."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    if first != b"{" or not 2 <= length <= min(size - 8, MAX_HEADER):
        raise ValueError(f"it is not a safetensors file; {advice}")
    if size > max_bytes:
        raise ValueError(f"it has {size / 2**30:.1f} GiB; up to {max_bytes >> 30} GiB are loaded; {advice}")


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
    raise FileExistsError("every name is taken")


def _finish(file: BinaryIO, parts: Parts, path: StrPath) -> None:
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
    removed: list[str] = []
    for entry in [entry for entry in os.scandir(folder) if PARTIAL.fullmatch(entry.name)]:
        with suppress(OSError):  # another process was first
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime < time() - ABANDONED:
                os.unlink(entry.path)
                removed.append(entry.name)
    return removed
