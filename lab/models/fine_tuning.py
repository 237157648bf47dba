"""What the trainers of the companion files share: the finished model, scenes as its latents, and the training loop."""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import comfy.clip_model
import numpy as np
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..weights import CHECKPOINT
from ..world.data import Scene, caption, sample_scene
from ..world.vocabulary import token_ids
from .embedding_rows import expanded
from .shapes_unet.latents import encoder, stacked
from .shapes_unet.loader import TEXT_CONFIG, UNET_CONFIG
from .shapes_unet.network import OPERATIONS
from .shapes_unet.train import Schedule
from .shapes_unet.train_vae import WORK

PARTS = UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.transformer.", "first_stage_model."
ENCODED = 8  # pictures at a time
WARM_UP, EMA = 100, 0.995
SAID_EVERY = 100  # steps


class Base:
    """The finished checkpoint, frozen; `unet` may be given additions that learn."""

    def __init__(self):
        state = expanded(load_file(CHECKPOINT))
        unet, text, self.vae = (part_of(state, prefix) for prefix in PARTS)
        self.unet = UNetModel(**UNET_CONFIG, operations=OPERATIONS)
        self.unet.load_state_dict(unet)
        self.text = comfy.clip_model.CLIPTextModel(TEXT_CONFIG, None, None, OPERATIONS)
        self.text.load_state_dict(text, strict=False)  # the checkpoint has no text projection
        for part in (self.unet, self.text):
            part.requires_grad_(False)
        self.schedule = Schedule()

    def drawn(self, scenes: list[Scene], count: int, dropout: float) -> tuple[Tensor, Tensor]:
        """(places of random scenes, their captions as the UNet's context), this share of the captions empty."""
        rows = torch.randint(len(scenes), (count,))
        texts = [caption(scenes[row]) if random.random() >= dropout else "" for row in rows]
        return rows, self.read(texts)

    @torch.no_grad()
    def read(self, captions: list[str]) -> Tensor:
        """The UNet's context of these captions, (n, 77, width)."""
        ids = torch.tensor([token_ids(text) for text in captions])
        embeddings = self.text.get_input_embeddings()(ids)
        with torch.autocast("cpu", torch.bfloat16):
            return self.text(embeds=embeddings, num_tokens=[1] * len(ids))[0].float()

    def latents(self, path: Path, pictures: Iterable[np.ndarray]) -> Tensor:
        """The pictures as latents (n, 4, 16, 16), made once and kept in that file."""
        if not path.exists():
            start, encode, rest, parts = time.monotonic(), encoder(self.vae), iter(pictures), []
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                while batch := list(islice(rest, ENCODED)):
                    parts.append(encode(stacked(batch)).float())
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": torch.cat(parts)}, path)
            print(f"{path.name} in {time.monotonic() - start:.0f}s", flush=True)
        return load_file(path)["latents"]


def scenes_of(count: int, seed: int) -> list[Scene]:
    """Fresh scenes of one or two objects."""
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(count)]


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a companion file holds it: fp16."""
    return {key: value.detach().half().contiguous() for key, value in state.items()}


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under this prefix, without it, in single precision."""
    return {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}


def train(learned: list[nn.Parameter], loss_of: Callable[[], Tensor], minutes: float, rate: float) -> None:
    """Trains for so many minutes and leaves the running mean of the weights in `learned`."""
    optimizer = torch.optim.AdamW(learned, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    averaged = [parameter.detach().clone() for parameter in learned]
    start, step, done, losses = time.monotonic(), 0, 0.0, []
    while done < 1:
        done = min(1.0, (time.monotonic() - start) / (60 * minutes))
        cosine = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * cosine
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(averaged, learned, 1 - min(EMA, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if step % SAID_EVERY == 0 or done == 1:
            recent = losses[-SAID_EVERY:]
            print(f"{time.monotonic() - start:6.0f}s step {step} loss {sum(recent) / len(recent):.5f}", flush=True)
    with torch.no_grad():
        torch._foreach_copy_(learned, averaged)


def arguments(argv: list[str], command: str, about: str, file: Path, scenes: int = 4000) -> argparse.Namespace:
    """The command line that all of these trainers have."""
    parser = argparse.ArgumentParser(f"python -m lab.models {command}", description=about)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--scenes", type=int, default=scenes, help="scenes to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the latents")
    parser.add_argument("--file", type=Path, default=file, help="where the result goes")
    return parser.parse_args(argv)
