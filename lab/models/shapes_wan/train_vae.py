"""Trains the video autoencoder; writes its state and the file that the host loads (EMA, fp16).

Goes on from WORK/wan_vae_state.safetensors, with a new learning-rate cycle, when there is one. Single frames come
first (`--frames 1`), which are far cheaper to learn from; clips, in a second run, have the latents' statistics frozen.
Then the decoder can learn on alone while the transformer learns the latents (`--decoder`).
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...world.clips import FRAMES, SIZE, render_clip, sample_clip
from ..shapes_unet.train_vae import WORK
from ..training import Training, replace_file, train
from .autoencoder import Autoencoder, host_state

LEARNING_RATE, MUON_RATE, TWO_SHARE = 1e-3, 5e-3, 0.5
STATE, FILE = "wan_vae_state.safetensors", "wan_vae.safetensors"
SEED = 7


class Windows:
    """Random windows of clips."""

    def __init__(self, clips: Tensor, frames: int, crop: int, batch: int):
        self.clips, self.frames, self.crop, self.batch = clips, frames, crop, batch

    def draw(self) -> tuple[Tensor, None]:
        """(batch, 3, frames, crop, crop), 0..1; they have no caption."""
        return torch.stack([self._window() for _ in range(self.batch)]).float() / 255, None

    def _window(self) -> Tensor:
        sides = (len(self.clips), 1), (FRAMES, self.frames), (SIZE, self.crop), (SIZE, self.crop)
        row, first, top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in sides)
        return self.clips[row, :, first : first + self.frames, top : top + self.crop, left : left + self.crop]


def main(argv: list[str]) -> None:
    """The command line."""
    wanted = _arguments(argv)
    torch.manual_seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    net, state = Autoencoder(), wanted.work / STATE
    net.train(wanted.frames < FRAMES)
    training = Training(net, optimizers(net))
    if state.exists():
        training.load(state)
        torch.manual_seed(training.step)  # other batches than the first run's
    if wanted.decoder:
        net.load_state_dict(training.ema)  # the encoder that the latents come from
        for part in (net.vae.encoder, net.vae.conv1):
            part.requires_grad_(False)

    def save() -> None:
        training.save(state)
        replace_file(wanted.work / FILE, host_state(training.ema))

    windows = Windows(clips(wanted.clips), wanted.frames, wanted.crop, wanted.batch)
    train(training, windows, lambda frames, _: loss(net, frames, wanted.noise), wanted.minutes * 60, save)


def loss(net: Autoencoder, frames: Tensor, noise: float) -> Tensor:
    """Of the reconstruction through noised latents.

    Noise of a set level on latents of unit variance is what the KL term of a VAE comes to when its variance is set.
    """
    frames = frames.contiguous(memory_format=torch.channels_last_3d)
    latents = net.encode(frames)
    level = noise * torch.rand(len(latents), 1, 1, 1, 1)
    output = net.decode(latents + level * torch.randn_like(latents))
    return F.mse_loss(output, frames) + 0.1 * F.l1_loss(output, frames)


def optimizers(net: Autoencoder) -> list[torch.optim.Optimizer]:
    """Muon for the kernels, AdamW for all else."""
    kernels = [one for one in net.parameters() if one.ndim > 2 and one[0].numel() > 64]
    inside = {id(one) for one in kernels}
    rest = [one for one in net.parameters() if id(one) not in inside]
    return [
        kernel_muon(kernels),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True),
    ]


def kernel_muon(kernels: list[Tensor]) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for kernels of convolutions, each as a matrix with a row for each output."""

    class KernelMuon(torch.optim.Muon):  # which torch has since 2.9
        def step(self, closure=None):
            for matrix, kernel in zip(self.param_groups[0]["params"], kernels, strict=True):
                matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
            return super().step(closure)

    matrices = [kernel.data.flatten(1) for kernel in kernels]
    return KernelMuon(matrices, lr=MUON_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


def clips(count: int) -> Tensor:
    """uint8 (count, 3, FRAMES, SIZE, SIZE)."""
    rng = random.Random(SEED)
    rendered = np.stack([render_clip(sample_clip(rng, rng.random() < TWO_SHARE)) for _ in range(count)])
    return torch.from_numpy(rendered).permute(0, 4, 1, 2, 3).contiguous()


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m lab.models shapes_wan.train_vae", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train, earlier runs included")
    parser.add_argument("--crop", type=int, default=SIZE, help="side of the windows in pixels, a multiple of 8")
    parser.add_argument(
        "--frames", type=int, default=FRAMES, help="frames of the windows, one or a multiple of 4 and one"
    )
    parser.add_argument("--batch", type=int, default=4, help="windows per step")
    parser.add_argument(
        "--decoder", action="store_true", help="only the decoder learns; the latents stay what they are"
    )
    parser.add_argument("--noise", type=float, default=0.1, help="noise on the latents the decoder learns from")
    parser.add_argument("--clips", type=int, default=2000, help="clips to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    return parser.parse_args(argv)
