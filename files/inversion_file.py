"""An inversion as a file: safetensors, versioned, written whole or not at all, checked in full before it is used.

Version 1 holds the tensors `sigmas` (float64), `latents.i` for each level, and for entry i of a null-text
conditioning `null_text.i` and `null_text.i.pooled_output` (all float32); all else is text in the metadata, with a
SHA-256 over everything. The same inversion gives the same bytes.
"""

import json
from hashlib import sha256
from math import inf
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..samplers.core import check_tensor
from ..samplers.inversion import Inversion
from ..samplers.noise_law import NoiseLaw
from .safetensors import OpenFile, StrPath, check_is_safetensors, opened, parts_of, values, write_numbered, write_whole

VERSION = "1"
LAWS = {"variance_exploding": False, "rectified_flow": True}
KINDS = {"law": str, "noise_scale": float, "latent_format": str, "from_top": bool, "null_text": (list, type(None))}
METADATA, CONTENTS = ["contents", "sha256", "steer_inversion"], sorted(KINDS)
MAX_BYTES = 16 * 2**30
ADVICE = "choose one that SteerSaveInversion wrote"

Options = dict[str, Any]
NullText = list[list[Any]]
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
"""What a null-text entry may carry besides `pooled_output`, and from where to where.

The names are ComfyUI's, and part of the format: a file of version 1 holds these, whatever a ComfyUI of today knows.
"""


def save(path: StrPath, inversion: Inversion, null_text: NullText | None = None) -> None:
    """Writes the file, whole or not at all, in place of one that was there.

    Raises ValueError, before anything is written, for what `load` would refuse.
    """
    write_whole(path, _parts(inversion, null_text))


def save_numbered(
    folder: str, name: str, number: int, inversion: Inversion, null_text: NullText | None = None
) -> tuple[str, list[str]]:
    """Writes `name_number_.safetensors` with the first number from this one on that is free, see `write_numbered`.

    Raises ValueError, before anything is written, for what `load` would refuse.
    """
    return write_numbered(folder, name, number, _parts(inversion, null_text))


def _parts(inversion: Inversion, null_text: NullText | None) -> list[bytes | memoryview]:
    """What is written; ValueError for what cannot be."""
    return _stored(*_contents(inversion, null_text))


def _stored(tensors: dict[str, Tensor], contents: Options) -> list[bytes | memoryview]:
    stored = json.dumps(contents, sort_keys=True)
    metadata = {"steer_inversion": VERSION, "contents": stored, "sha256": _digest(tensors, stored)}
    return parts_of(tensors, metadata, MAX_BYTES)


def load(path: StrPath) -> tuple[Inversion, NullText | None]:
    """The inversion, and the null-text conditioning if the file has one. ValueError for a file that is not all right.

    The tensors are copies: the file may change afterwards.
    """
    try:
        check_is_safetensors(path, MAX_BYTES, ADVICE)
        with opened(path) as file:
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
    sigmas = tuple(map(float, tensors["sigmas"]))
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


def _check_option(name: str, key: str, value: Any) -> None:
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


def _contents(inversion: Inversion, null_text: NullText | None) -> tuple[dict[str, Tensor], Options]:
    """(tensors by name, the rest as JSON values)."""
    tensors = {"sigmas": torch.tensor(inversion.sigmas, dtype=torch.float64)}
    check_latents(inversion)
    tensors |= {f"latents.{index}": latent for index, latent in enumerate(inversion.latents)}
    contents: Options = {
        "law": "rectified_flow" if inversion.law.flow else "variance_exploding",
        "noise_scale": float(inversion.law.noise_scale),
        "latent_format": inversion.latent_format,
        "from_top": bool(inversion.from_top),
        "null_text": None,
    }
    if null_text is not None:
        null_text = [[_widened(cond), _widened_options(options)] for cond, options in null_text]
        check_null_text(null_text)
        contents["null_text"] = [
            _without_tensors(index, cond, options, tensors) for index, (cond, options) in enumerate(null_text)
        ]
    return tensors, contents


def _widened(value: Any) -> Any:
    """A half-precision tensor as float32, which holds it exactly; anything else as it is, for the checks to judge."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return value.detach().to("cpu", torch.float32) if half else value


def _widened_options(options: Options) -> Options:
    return options | {"pooled_output": _widened(options["pooled_output"])} if "pooled_output" in options else options


def _without_tensors(index: int, cond: Tensor, options: Options, tensors: dict[str, Tensor]) -> Options:
    """The options as JSON values; the entry's tensors go into `tensors`."""
    tensors[f"null_text.{index}"] = cond
    pooled = options.get("pooled_output")
    if pooled is not None:
        tensors[f"null_text.{index}.pooled_output"] = pooled
    return {key: pooled is not None if key == "pooled_output" else value for key, value in options.items()}


def _with_tensors(entries: list[Options] | None, tensors: dict[str, Tensor]) -> NullText | None:
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


def _digest(tensors: dict[str, Tensor], contents: str) -> str:
    """SHA-256 of everything that is stored."""
    digest = sha256(contents.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(values(tensor))
    return digest.hexdigest()


def _checked_contents(metadata: dict[str, str]) -> Options:
    """The JSON values, each of a known kind; the options of the null-text entries are looked at later."""
    version = metadata.get("steer_inversion")
    if version is None:
        raise ValueError(f"it holds no inversion; {ADVICE}")
    if version != VERSION:
        raise ValueError(f"it has version {version[:20]!r}, and this Steer reads version {VERSION}; update Steer")
    try:
        loaded: Any = json.loads(metadata.get("contents", ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its description is damaged ({error}); copy or save it again") from error
    contents = cast(Options, loaded) if isinstance(loaded, dict) else {}
    whole = sorted(metadata) == METADATA and sorted(contents) == CONTENTS
    if not whole or not all(isinstance(contents[key], kind) for key, kind in KINDS.items()):
        raise ValueError("its description is not that of an inversion; save it again")
    if contents["law"] not in LAWS:
        raise ValueError(f"its noise law is {contents['law'][:40]!r}; known are {' and '.join(LAWS)}")
    entries: list[object] = contents["null_text"] or []
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("its null-text entries are damaged; save it again")
    return contents


def _expected_names(names: list[str], entries: list[Options] | None) -> list[str]:
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


def _tensor(file: OpenFile, name: str) -> Tensor:
    wanted = "F64" if name == "sigmas" else "F32"
    stored = file.get_slice(name).get_dtype()
    if stored != wanted:
        raise ValueError(f"{name} is stored as {stored}; {wanted} is needed")
    return file.get_tensor(name).clone()
