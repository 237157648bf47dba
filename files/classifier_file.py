"""A classifier as a file, written whole or not at all, checked in full before it is used.

Safetensors: `Network`'s state dict in one precision, and in the metadata, all as text, `format` "steer-classifier",
`version` "1", `labels` (a JSON list), `law` ("variance-exploding" or "rectified-flow"), `noise_scale`, `latent_format`
(the host's class, such as "SD15"), `channels`, `width`, `precision` ("float16" or "float32").
"""

import json
from math import inf
from typing import Any, TypeGuard, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ..samplers.classifier import GROUPS, Classifier, Network, plain
from ..samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from .safetensors import OpenFile, StrPath, check_is_safetensors, opened, write_whole

FORMAT, VERSION = "steer-classifier", "1"
KEYS = {"format", "version", "labels", "law", "noise_scale", "latent_format", "channels", "width", "precision"}
LAWS = {law.name: law.flow for law in (VARIANCE_EXPLODING, RECTIFIED_FLOW)}
PRECISIONS = {"float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}
MAX_BYTES = 2**30
MAX_LABELS, MAX_LABEL, MAX_CHANNELS, MAX_WIDTH = 10_000, 200, 1024, 512
ADVICE = "choose a file that `write_classifier` of this package wrote (lab/models/classifier/train.py shows how)"


def write_classifier(path: StrPath, classifier: Classifier, precision: str = "float16") -> None:
    """Writes the file whole or not at all. ValueError, before that, for what `read_classifier` would refuse."""
    network, law = classifier.network, classifier.law
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "labels": json.dumps(list(classifier.labels)),
        "law": law.name,
        "noise_scale": repr(float(law.noise_scale)),
        "latent_format": classifier.latent_format,
        "channels": str(network.channels),
        "width": str(network.width),
        "precision": precision,
    }
    labels = _described(metadata)[0]
    if len(labels) != network.labels:
        raise ValueError(f"{len(labels)} labels for a network of {network.labels}; one for each is needed")
    dtype = PRECISIONS[precision][0]
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()}
    for name, tensor in tensors.items():
        _check_finite(name, tensor)
    write_whole(path, [save(tensors, metadata)])


def read_classifier(path: StrPath) -> Classifier:
    """The classifier, its weights ordinary float32 tensors without gradient, in inference mode too.

    ValueError, before anything large is allocated, for a file that is not all right.
    """
    try:
        check_is_safetensors(path, MAX_BYTES, ADVICE)
        with torch.inference_mode(False), opened(path) as file:
            metadata = file.metadata() or {}
            labels, law, latent_format, network = _described(metadata)
            _check_weights(file, network, metadata["precision"])
            tensors = {name: file.get_tensor(name).clone().float() for name in network.state_dict()}
            for name, tensor in tensors.items():
                _check_finite(name, tensor)
            network.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"it cannot be read as safetensors ({error}); {ADVICE}") from error
    return Classifier(labels, law, latent_format, network.requires_grad_(False).eval())


def _described(metadata: dict[str, str]) -> tuple[tuple[str, ...], NoiseLaw, str, Network]:
    """(labels, law, latent format, the network without weights) of checked metadata."""
    if metadata.get("format") != FORMAT:
        raise ValueError(f"it holds no classifier; {ADVICE}")
    if metadata.get("version") != VERSION:
        version = str(metadata.get("version"))[:20]
        raise ValueError(f"it has version {version!r}, and this Steer reads version {VERSION}; update Steer")
    odd = sorted(KEYS ^ set(metadata))
    if odd:
        raise ValueError(f"its metadata have too much or too little, such as {odd[0][:40]!r}; {ADVICE}")
    for key, known in (("law", LAWS), ("precision", PRECISIONS)):
        if metadata[key] not in known:
            raise ValueError(f"its {key} is {metadata[key][:40]!r}; known are {' and '.join(known)}; {ADVICE}")
    latent_format = metadata["latent_format"]
    if not latent_format.isidentifier() or len(latent_format) > 100:
        raise ValueError(f"its latent format is {latent_format[:100]!r}; a name such as 'SD15' is needed; {ADVICE}")
    law, labels = NoiseLaw(LAWS[metadata["law"]], _noise_scale(metadata["noise_scale"])), _labels(metadata["labels"])
    channels, width = _whole(metadata, "channels", 1, MAX_CHANNELS), _whole(metadata, "width", GROUPS, MAX_WIDTH)
    if width % GROUPS:
        raise ValueError(f"its width is {width}; a multiple of {GROUPS} is needed; {ADVICE}")
    with torch.device("meta"):
        return labels, law, latent_format, Network(channels, width, len(labels))


def _labels(text: str) -> tuple[str, ...]:
    try:
        loaded: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its labels are damaged ({error}); {ADVICE}") from error
    listed = cast(list[object], loaded) if isinstance(loaded, list) else []
    labels = tuple(filter(_is_label, listed))
    if not 2 <= len(listed) <= MAX_LABELS or len(labels) < len(listed):
        raise ValueError(f"its labels are no list of 2 to {MAX_LABELS} names of up to {MAX_LABEL} characters; {ADVICE}")
    if len(set(map(plain, labels))) < len(labels):
        raise ValueError(f"of its labels two are the same but for case and spaces; {ADVICE}")
    return labels


def _is_label(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.isprintable() and 0 < len(value.strip()) <= len(value) <= MAX_LABEL


def _noise_scale(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < inf:
        raise ValueError(f"its noise_scale is {text[:40]!r}; a number above 0 is needed; {ADVICE}")
    return value


def _whole(metadata: dict[str, str], key: str, low: int, high: int) -> int:
    text = metadata[key]
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise ValueError(f"its {key} is {text[:40]!r}; a whole number from {low} to {high} is needed; {ADVICE}")
    return int(text)


def _check_weights(file: OpenFile, network: Network, precision: str) -> None:
    """ValueError unless the file's tensors have the names, types and shapes of the network; reads none of them."""
    wanted = network.state_dict()
    odd = sorted(set(wanted) ^ set(file.keys()))
    if odd:
        raise ValueError(f"it has too many or too few tensors, such as {odd[0][:100]!r}; {ADVICE}")
    for name, value in wanted.items():
        stored = file.get_slice(name)
        if stored.get_dtype() != PRECISIONS[precision][1]:
            raise ValueError(f"{name} is stored as {stored.get_dtype()}, not in {precision}; {ADVICE}")
        shape, needed = tuple(stored.get_shape()), tuple(value.shape)
        if shape != needed:
            raise ValueError(f"{name} has the shape {shape}; the architecture has {needed} there; {ADVICE}")


def _check_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values; train again, or write in float32; {ADVICE}")
