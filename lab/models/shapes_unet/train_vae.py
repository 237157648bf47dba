"""Trains the TAESD-shaped autoencoder; goes on from WORK/vae.safetensors when there is one.

A 32-wide copy is trained (4 times cheaper) and zero-padded to TAESD's fixed width of 64, which computes the same
function. The encoder's output is batch-normalised while training and the statistics are folded into its last
convolution, so that latents have zero mean and about unit variance per channel.
"""

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from comfy.taesd.taesd import Block, Decoder, Encoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...package import ROOT
from ...world.data import render, sample_scene

WORK = ROOT / "lab" / "output" / "shapes"
FILE = "vae.safetensors"
PREFIXES = ("taesd_encoder.", "taesd_decoder.")
WIDTH, TAESD_WIDTH = 32, 64
SD15_SCALE = 0.18215  # the factor of the stock SD15 latent format
CROP, BATCH = 64, 16
LEARNING_RATE, FLOOR, WARM_UP = 1e-3, 1e-5, 100
FREEZE_STATISTICS, FULL_PRECISION = 0.7, 0.9  # share of the run after which


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lab.models shapes_unet.train_vae", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--noise", type=float, default=0.05, help="noise on the latents the decoder learns from")
    parser.add_argument("--scenes", type=int, default=4000, help="pictures to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    images, path = _pictures(wanted.scenes), wanted.work / FILE
    encoder, decoder = slim(Encoder(4)), slim(Decoder(4))
    if path.exists():
        _load(path, encoder, decoder)
    encoder, decoder = (net.to(memory_format=torch.channels_last) for net in (encoder, decoder))
    norm = nn.BatchNorm2d(4, affine=False, momentum=0.02)
    train(encoder, decoder, norm, images, wanted.minutes, wanted.noise)
    fold(norm, encoder)
    save_file(_padded_state(encoder, decoder, images), path)


def slim(net: nn.Sequential) -> nn.Sequential:
    """The network at WIDTH instead of TAESD's own, freshly initialised; residual branches start calm."""
    for conv in (part for part in net.modules() if isinstance(part, nn.Conv2d)):
        shape = _slim_shape(conv.weight)
        conv.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            conv.bias = nn.Parameter(torch.zeros(shape[0]))
    for block in (part for part in net.modules() if isinstance(part, Block)):
        block.conv[4].weight.data *= 0.2
    return net


def slim_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One network's weights out of a padded file, without the padding."""
    own = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    return {key: value[tuple(map(slice, _slim_shape(value)))] for key, value in own.items()}


def train(encoder, decoder, norm, images: Tensor, minutes: float, noise: float) -> None:
    """Trains in place: reconstruction of crops through noised latents."""
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1:
        done = min(1.0, (time.monotonic() - start) / (60 * minutes))
        optimizer.param_groups[0]["lr"] = _learning_rate(step, done)
        norm.train(done <= FREEZE_STATISTICS)
        target = _crops(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=done < FULL_PRECISION):
            latents = norm(encoder(target).float())
            level = noise * torch.rand(BATCH, 1, 1, 1)
            output = decoder(latents + level * torch.randn_like(latents)).float()
        loss = F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target)
        loss = loss + 1e-4 * (latents.abs() - 3).clamp(min=0).mean()  # the decoder saturates at 3
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or done == 1:
            psnr = -10 * math.log10(F.mse_loss(output, target).item())
            print(f"{time.monotonic() - start:6.0f}s step {step} loss {loss.item():.5f} psnr {psnr:.2f}", flush=True)
        step += 1


@torch.no_grad()
def fold(norm: nn.BatchNorm2d, encoder: nn.Sequential) -> None:
    """Puts the normalisation into the encoder's last convolution, in place."""
    std = (norm.running_var + norm.eps).sqrt()
    last = encoder[-1]
    last.bias.data = (last.bias - norm.running_mean) / std
    last.weight.data = last.weight / std.view(-1, 1, 1, 1)


@torch.no_grad()
def _padded_state(encoder, decoder, images: Tensor) -> dict[str, Tensor]:
    """The file: both networks at TAESD's width, and the scale that gives latents of about unit std after SD15's."""
    whole = [encoder(images[i : i + 8].float() / 255) for i in range(0, min(512, len(images)), 8)]
    latents = torch.cat(whole)
    print("latent mean", latents.mean((0, 2, 3)).tolist(), "std", latents.std((0, 2, 3)).tolist(), flush=True)
    state = {"vae_scale": SD15_SCALE * latents.std(), "vae_shift": torch.tensor(0.0)}
    for prefix, net, full in zip(PREFIXES, (encoder, decoder), (Encoder(4), Decoder(4)), strict=True):
        shapes = {key: value.shape for key, value in full.state_dict().items()}
        state |= {prefix + key: _padded(value, shapes[key]) for key, value in net.state_dict().items()}
    return state


def _load(path: Path, *nets: nn.Module) -> None:
    state = load_file(path)
    for prefix, net in zip(PREFIXES, nets, strict=True):
        net.load_state_dict(slim_state(state, prefix))


def _pictures(count: int) -> Tensor:
    """uint8 (count, 3, SIZE, SIZE)."""
    rng = random.Random(7)
    pictures = np.stack([render(sample_scene(rng)) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def _crops(images: Tensor) -> Tensor:
    """A batch of random windows, float 0..1."""
    out = []
    for index in torch.randint(len(images), (BATCH,)).tolist():
        top, left = (random.randrange(side - CROP + 1) for side in images.shape[-2:])
        out.append(images[index, :, top : top + CROP, left : left + CROP])
    return torch.stack(out).float() / 255


def _learning_rate(step: int, done: float) -> float:
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done)) + FLOOR


def _slim_shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(WIDTH if side == TAESD_WIDTH else side for side in weight.shape)


def _padded(weight: Tensor, shape: torch.Size) -> Tensor:
    padded = torch.zeros(shape)
    padded[tuple(map(slice, weight.shape))] = weight
    return padded
