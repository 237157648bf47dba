"""What the CLIP pair sees: renders and what the shapes model makes of them, cropped and disturbed."""

import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from comfy.taesd.taesd import Decoder, Encoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...weights import CHECKPOINT
from ...world.data import COLORS, SIZE, Scene, render, sample_scene
from ..shapes_unet.train_vae import PREFIXES, SD15_SCALE, slim, slim_state
from ..stock import load

INPUT = 64  # pixels the vision tower takes, both ways
TWO_SHARE = 0.4
BATCH = 8
VAE = "first_stage_model."
LEAST_SIGMA = 0.03  # of the model's noise schedule
SIGMAS = 0.3, 14.6  # of the denoised estimates, drawn log-uniformly
LATE, LATE_SHARE = 6.0, 0.5  # of the draws above LATE this share is kept: there is little left to see
CERTAIN, POSSIBLE = 0.85, 0.15  # of an object's box inside a crop: from here it counts as seen, below as not there
BODY, OUTSIDE = 0.8, 1.2  # in radii from an object's centre
UNDECIDED = -100  # what cross_entropy ignores
JITTER, NOISE = 8 / 255, 0.04


def scenes_of(count: int, seed: int) -> list[Scene]:
    """Fresh scenes, TWO_SHARE of them with two objects."""
    rng = random.Random(seed)
    return [sample_scene(rng, rng.random() < TWO_SHARE) for _ in range(count)]


def renders(scenes: list[Scene]) -> Tensor:
    """uint8 (n, 3, SIZE, SIZE)."""
    return torch.stack([torch.from_numpy(render(scene).copy()) for scene in scenes]).permute(0, 3, 1, 2).contiguous()


def masks(scenes: list[Scene]) -> Tensor:
    """Where the objects are, uint8 (n, 1, SIZE, SIZE)."""
    return torch.stack([torch.from_numpy(render(scene, only_mask=True) * 255).byte() for scene in scenes])[:, None]


def estimates(work: Path, count: int) -> tuple[list[Scene], Tensor]:
    """Scenes and, as the shapes model estimates them from noise, their pictures; made once, kept in the work folder."""
    path, scenes = work / f"estimates_{count}.safetensors", scenes_of(count, 1)
    if not path.exists():
        start, rng = time.monotonic(), random.Random(2)
        torch.manual_seed(3)
        sigmas = [_sigma(rng) for _ in range(count)]
        save_file({"pictures": Estimator()(scenes, sigmas)}, path)
        print(f"{count} estimates in {time.monotonic() - start:.0f}s", flush=True)
    return scenes, load_file(path)["pictures"]


class Estimator:
    """The shapes model without a prompt, with its autoencoder at the width it was trained at (5 times faster)."""

    def __init__(self):
        model, clip, _ = load()
        self.model, self.context = model.model, clip.encode_from_tokens(clip.tokenize(""))
        state = {key.removeprefix(VAE): value.float() for key, value in load_file(CHECKPOINT).items()}
        self.encoder, self.decoder = slim(Encoder(4)), slim(Decoder(4))
        for prefix, net in zip(PREFIXES, (self.encoder, self.decoder), strict=True):
            net.load_state_dict(slim_state(state, prefix))
            net.to(memory_format=torch.channels_last)
        self.scale = SD15_SCALE / state["vae_scale"]

    @torch.inference_mode()
    def __call__(self, scenes: list[Scene], sigmas: list[float]) -> Tensor:
        """Each scene encoded, noised to its sigma, estimated and decoded: uint8 (n, 3, SIZE, SIZE).

        At sigma 0 it is the autoencoder's round trip.
        """
        parts = [slice(start, start + BATCH) for start in range(0, len(scenes), BATCH)]
        with torch.autocast("cpu", torch.bfloat16):
            pictures = [self._batch(renders(scenes[part]), torch.tensor(sigmas[part])) for part in parts]
        return torch.cat(pictures).contiguous()

    def _batch(self, pictures: Tensor, sigma: Tensor) -> Tensor:
        clean = self.encoder(pictures.float() / 255).float() * self.scale
        level = sigma.view(-1, 1, 1, 1)
        noised, context = clean + level * torch.randn_like(clean), self.context.expand(len(clean), -1, -1)
        estimate = self.model.apply_model(noised, sigma.clamp(min=LEAST_SIGMA), c_crossattn=context)
        decoded = self.decoder(torch.where(level > 0, estimate, clean) / self.scale)
        return (decoded.float().clamp(0, 1) * 255).round().byte()


def crops(pictures: Tensor, whole_share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Random windows of pictures, as guidance sees them: float 0..1 (n, c, INPUT, INPUT); and x, y, side (n, 3)."""
    windows = [_window(whole_share) for _ in pictures]
    cut = [p[None, :, y : y + s, x : x + s].float() for p, (x, y, s) in zip(pictures, windows, strict=True)]
    small = [F.adaptive_avg_pool2d(c, INPUT) if torch.rand(()) < 0.5 else _resized(c) for c in cut]
    return torch.cat(small) / 255, torch.tensor(windows, dtype=torch.float)


def seen(windows: Tensor, scene: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which objects are in the windows, bool (n, 2) each, as `truth` takes it."""
    (x, y, side), (cx, cy, r) = windows.T[:, :, None], scene["place"].unbind(-1)  # (n, 1), (n, 2)
    share = _inside(cx - x, r, side) * _inside(cy - y, r, side)
    there = torch.arange(2) < scene["count"][:, None]
    return {"certain": there & (share >= CERTAIN), "possible": there & (share >= POSSIBLE)}


def patch_labels(windows: Tensor, scene: dict[str, Tensor], patch: int) -> tuple[Tensor, Tensor]:
    """What each patch of the windows belongs to, (n, patches): the object's shape, 0 for none; its colour, else the
    background's. UNDECIDED at outlines and where an object is cut off.
    """
    middle = (torch.arange(0, INPUT, patch) + patch / 2) / INPUT
    x, y, side = windows.T[:, :, None, None]  # (n, 1, 1) each
    across, down = x + side * middle, y + side * middle[:, None]  # (n, 1, columns), (n, rows, 1)
    cx, cy, r = scene["place"].unbind(-1)
    visible = seen(windows, scene)
    shape = torch.zeros(len(windows), len(middle), len(middle), dtype=torch.long)
    color = (len(COLORS) + scene["bg"])[:, None, None].expand_as(shape)
    for index in range(2):
        at = [value[:, index, None, None] for value in (cx, cy, r, visible["certain"], visible["possible"])]
        distance = ((across - at[0]).square() + (down - at[1]).square()).sqrt() / at[2]
        body, outline = (distance < BODY) & at[3], (distance < OUTSIDE) & at[4]
        labels = (scene["shapes"][:, index, None, None] + 1, scene["colors"][:, index, None, None])
        shape, color = (
            torch.where(body, label, torch.where(outline, UNDECIDED, value))
            for label, value in zip(labels, (shape, color), strict=True)
        )
    return shape.flatten(1), color.flatten(1)


def disturbed(pictures: Tensor) -> Tensor:
    """Slightly other colours and brightness, now and then a blur, and noise."""
    n = len(pictures)
    pictures = torch.where(torch.rand(n, 1, 1, 1) < 0.3, _blurred(pictures), pictures)
    tint = JITTER * (2 * torch.rand(n, 3, 1, 1) - 1)
    return pictures + tint + NOISE * torch.rand(n, 1, 1, 1) * torch.randn_like(pictures)


def _sigma(rng: random.Random) -> float:
    low, high = map(math.log, SIGMAS)
    while True:
        sigma = math.exp(rng.uniform(low, high))
        if sigma < LATE or rng.random() < LATE_SHARE:
            return sigma


def _window(whole_share: float) -> tuple[int, int, int]:
    if random.random() < whole_share:
        return 0, 0, SIZE
    side = random.randint(INPUT, SIZE)
    return random.randint(0, SIZE - side), random.randint(0, SIZE - side), side


def _resized(picture: Tensor) -> Tensor:
    return F.interpolate(picture, (INPUT, INPUT), mode="bicubic", antialias=True)


def _inside(centre: Tensor, r: Tensor, side: Tensor) -> Tensor:
    """Share of the interval centre - r .. centre + r that lies in 0 .. side."""
    ends = torch.minimum(centre + r, side) - (centre - r).clamp(min=0)
    return ends.clamp(min=0) / (2 * r)


def _blurred(pictures: Tensor) -> Tensor:
    side = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (side[:, None] * side)[None, None].repeat(3, 1, 1, 1)
    return F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
