"""A noise-aware classifier p(y | x, sigma) on latents, for classifier guidance, and its file.

Classifier guidance (Dhariwal and Nichol 2021, arXiv:2105.05233) needs a classifier that was trained on what sampling
meets: latents `x = alpha x0 + std n` of one model, at all of its noise levels. `Network` is ours and small; to train
one for another model, in any codebase: draw a labelled x0 in the model's space (after the host's `process_latent_in`),
a sigma of the model and n, and minimise the cross entropy of `log_probs`, without label smoothing, which would bias
the gradient. Labels have to cover what the model draws, in its proportions: the rest needs a label of its own.

The file is safetensors: `Network`'s state dict in one precision, and in the metadata, all as text, `format`
"steer-classifier", `version` "1", `labels` (a JSON list), `law` ("variance-exploding" or "rectified-flow"),
`noise_scale`, `latent_format` (the host's class, such as "SD15"), `channels`, `width`, `precision` ("float16" or
"float32").
"""

import json
import os
from dataclasses import dataclass
from math import hypot, inf, log
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call

from .inversion_file import check_is_safetensors, write_whole
from .noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw

FORMAT, VERSION = "steer-classifier", "1"
KEYS = {"format", "version", "labels", "law", "noise_scale", "latent_format", "channels", "width", "precision"}
LAWS = {law.name: law.flow for law in (VARIANCE_EXPLODING, RECTIFIED_FLOW)}
PRECISIONS = {"float16": (torch.float16, "F16"), "float32": (torch.float32, "F32")}
MAX_BYTES = 2**30
MAX_LABELS, MAX_LABEL, MAX_CHANNELS, MAX_WIDTH = 10_000, 200, 1024, 512
GROUPS, HEADS, WAVES = 8, 8, 8
MAX_LEVEL = 7.0  # log(std / alpha): noise from a thousandth of the picture to a thousand times
ADVICE = "choose a file that `write_classifier` of this package wrote (demo/shapes/train_classifier.py shows how)"


class Block(nn.Module):
    """x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)), scale and shift from the noise level (FiLM)."""

    def __init__(self, width: int, embedded: int):
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(embedded, 2 * width)
        for part in (self.conv_out, self.film):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[..., None, None].chunk(2, 1)  # (batch, width, 1, 1)
        hidden = self.norm_out(self.conv_in(nn.functional.silu(self.norm_in(x))))
        return x + self.conv_out(nn.functional.silu((1 + scale) * hidden + shift))


class Network(nn.Module):
    """Latents (batch, channels, h, w) of any size and noise levels (batch,) to logits (batch, labels).

    Latents come with about unit variance at every level, levels as `log(std / alpha)`. A 3x3 convolution to `width`,
    one block; twice a convolution of stride 2 that doubles the width, two blocks; norm and silu; attention pooling:
    each of 8 heads weighs its eighth of the channels by a softmax over the places; a linear layer. The level enters
    every block through sin and cos of 8 frequencies from 1/4 to 4 and two linear layers.
    """

    def __init__(self, channels: int, width: int, labels: int):
        super().__init__()
        self.channels, self.width, self.labels = channels, width, labels
        embedded = 4 * width
        self.level = nn.Sequential(nn.Linear(2 * WAVES, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width * factor, embedded) for factor in (1, 2, 2, 4, 4))
        self.downs = nn.ModuleList(nn.Conv2d(width * f, 2 * width * f, 3, stride=2, padding=1) for f in (1, 2))
        self.norm = nn.GroupNorm(GROUPS, embedded)
        self.places = nn.Conv2d(embedded, HEADS, 1)
        self.out = nn.Linear(embedded, labels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        waves = level[:, None] * torch.logspace(-2, 2, WAVES, base=2.0, dtype=x.dtype, device=x.device)
        level = self.level(torch.cat([waves.sin(), waves.cos()], 1))
        x = self.blocks[0](self.conv_in(x), level)
        x = self.blocks[2](self.blocks[1](self.downs[0](x), level), level)
        x = self.blocks[4](self.blocks[3](self.downs[1](x), level), level)
        x = nn.functional.silu(self.norm(x))
        weights = self.places(x).flatten(2).softmax(-1)  # (batch, heads, places)
        features = x.flatten(2).unflatten(1, (HEADS, -1))  # (batch, heads, width / 2, places)
        return self.out((features @ weights[..., None]).flatten(1))


@dataclass(frozen=True)
class Classifier:
    """What a file holds. `latent_format` names the host's latent format; `labels` in the order of the logits."""

    labels: tuple[str, ...]
    law: NoiseLaw
    latent_format: str
    network: Network

    def log_probs(self, x: Tensor, sigma: float) -> Tensor:
        """log p(y | x, sigma) (batch, labels), float32, differentiable by x (batch, channels, h, w), the host's latent.

        Runs where x is; the network itself stays where it is. ValueError for a latent of another shape.
        """
        self.check_shape(x)
        weights = {name: value.to(x.device) for name, value in self.network.named_parameters()}
        level = torch.full((len(x),), log_level(self.law, sigma), device=x.device)
        x = x.float() * input_scale(self.law, sigma)
        return functional_call(self.network, weights, (x, level)).log_softmax(-1)

    def check_shape(self, x: Tensor) -> None:
        """ValueError for a latent of a shape that the network does not take."""
        if x.ndim != 4 or x.shape[1] != self.network.channels or not x.numel():
            wanted = f"(batch, {self.network.channels}, height, width)"
            raise ValueError(f"the latent has the shape {tuple(x.shape)}; this classifier takes {wanted}")

    def index(self, label: str) -> int:
        """The label's place, whatever its case and spaces. ValueError with the labels there are."""
        names = [_plain(name) for name in self.labels]
        if _plain(label) not in names:
            known = shorten(", ".join(self.labels), 2000, placeholder=" ...")
            raise ValueError(f"the classifier has no label {label[:MAX_LABEL]!r}; it has {known}")
        return names.index(_plain(label))


def input_scale(law: NoiseLaw, sigma: float) -> float:
    """What a latent at level sigma is multiplied by to have about unit variance."""
    return 1.0 if law.flow else 1.0 / hypot(1.0, law.std(sigma))


def log_level(law: NoiseLaw, sigma: float) -> float:
    """log(std / alpha), clamped: finite without noise, and where a flow model's latent is nothing else."""
    std, alpha = law.std(sigma), law.alpha(sigma)
    if std <= 0.0 or alpha <= 0.0:
        return -MAX_LEVEL if std <= 0.0 else MAX_LEVEL
    return min(MAX_LEVEL, max(-MAX_LEVEL, log(std / alpha)))


def write_classifier(path: str | os.PathLike, classifier: Classifier, precision: str = "float16") -> None:
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


def read_classifier(path: str | os.PathLike) -> Classifier:
    """The classifier, its weights ordinary float32 tensors without gradient, in inference mode too.

    ValueError, before anything large is allocated, for a file that is not all right.
    """
    try:
        check_is_safetensors(path, MAX_BYTES, ADVICE)
        with torch.inference_mode(False), safe_open(path, framework="pt") as file:
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
        found = str(metadata.get("version"))[:20]
        raise ValueError(f"it has version {found!r}, and this Steer reads version {VERSION}; update Steer")
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
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its labels are damaged ({error}); {ADVICE}") from error
    if not isinstance(labels, list) or not 2 <= len(labels) <= MAX_LABELS or not all(map(_is_label, labels)):
        raise ValueError(f"its labels are no list of 2 to {MAX_LABELS} names of up to {MAX_LABEL} characters; {ADVICE}")
    if len(set(map(_plain, labels))) < len(labels):
        raise ValueError(f"of its labels two are the same but for case and spaces; {ADVICE}")
    return tuple(labels)


def _is_label(value) -> bool:
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


def _check_weights(file, network: Network, precision: str) -> None:
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


def _plain(label: str) -> str:
    return " ".join(label.casefold().split())
