"""What the trainers of whole models share: their state on disk, their batches and the loop."""

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EMA, WARM_UP = 0.999, 200
SAVE_EVERY = 300  # seconds
ONE_OBJECT_TOKENS = 10  # at most, with start and end, in either vocabulary; captions of two objects have more


class Training:
    """Everything that changes while training: network, its running mean, optimisers, steps and seconds spent."""

    def __init__(self, net: nn.Module, optimizers: Sequence[torch.optim.Optimizer]):
        self.net, self.optimizers = net, optimizers
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.ema = {key: value.clone() for key, value in net.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    def save(self, path: Path) -> None:
        """Everything needed to go on."""
        tensors = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{number}.{index}.{key}": value for key, value in moments.items()}
        tensors["spent"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        replace_file(path, {key: value.contiguous() for key, value in tensors.items()})

    def load(self, path: Path) -> None:
        """The inverse of `save`."""
        parts: dict[str, dict] = {}
        for key, value in load_file(path).items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = value
        for number, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict] = {}
            for key, value in parts[f"optimizer{number}"].items():
                index, _, name = key.partition(".")
                moments.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.net.load_state_dict(parts["net"])
        self.ema = {key: parts["ema"][key] for key in self.ema}  # in the network's order, which the file does not keep
        step, self.seconds = parts["spent"][""].tolist()
        self.step = int(step)

    def update(self, loss: Tensor, share: float) -> None:
        """One step of the optimisers, at this share of their learning rates, and of the running mean."""
        self.net.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.net.parameters()), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.net.state_dict().values()), 1 - decay)


class Batches:
    """Random batches with a set share of two-object scenes, some captions dropped.

    `data` has `latents` (n, ...), `ids` (n, tokens) and `empty` (tokens,), which is end and padding; captions of one
    object have `one` tokens at most.
    """

    def __init__(
        self, data: dict[str, Tensor], size: int, two_share: float, dropout: float, one: int = ONE_OBJECT_TOKENS
    ):
        self.data, self.size, self.two_share, self.dropout = data, size, two_share, dropout
        padding = data["empty"][-1]
        two = (data["ids"] != padding).sum(1) > one
        self.pools = two.logical_not().nonzero()[:, 0], two.nonzero()[:, 0]

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents (size, ...), in single precision, and token rows (size, tokens)."""
        twos = int((torch.rand(self.size) < self.two_share).sum())
        counts = self.size - twos, twos
        drawn = [pool[torch.randint(len(pool), (n,))] for pool, n in zip(self.pools, counts, strict=True)]
        rows = torch.cat(drawn)
        dropped = torch.rand(self.size, 1) < self.dropout
        return self.data["latents"][rows].float(), torch.where(dropped, self.data["empty"], self.data["ids"][rows])


def train(
    training: Training, batches: Batches, loss_of: Callable[[Tensor, Tensor], Tensor], total: float,
    save: Callable[[], None],
) -> None:  # fmt: skip
    """Trains until `total` seconds are spent, those of earlier runs included; calls `save` now and then and last."""
    first, before = training.step, training.seconds
    start, saved, losses = time.monotonic() - before, before, []
    while training.seconds < total:
        training.seconds = time.monotonic() - start
        share = _share(training.step - first, min(1.0, (training.seconds - before) / (total - before)))
        loss = loss_of(*batches.draw())
        training.update(loss, share)
        losses.append(loss.item())
        if training.step % 100 == 0 or training.seconds >= total:
            recent = losses[-100:]
            print(
                f"{training.seconds:6.0f}s step {training.step} loss {sum(recent) / len(recent):.5f} rate {share:.3f}",
                flush=True,
            )
        if training.seconds - saved > SAVE_EVERY or training.seconds >= total:
            saved = training.seconds
            save()


def flow_loss(net: nn.Module, x0: Tensor, ids: Tensor, shift: float) -> Tensor:
    """Of the velocity (Liu et al. 2022, arXiv:2209.03003), at times as the sampler has them: uniform, then shifted."""
    uniform, noise = torch.rand(len(x0)), torch.randn_like(x0)
    t = shift * uniform / (1 + (shift - 1) * uniform)
    share = t.view(-1, *[1] * (x0.ndim - 1))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = net((1 - share) * x0 + share * noise, t, ids)
    return (velocity.float() - (noise - x0)).square().mean()


def replace_file(path: Path, state: dict[str, Tensor]) -> None:
    """Write the file so that no reader ever sees half of it."""
    save_file(state, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _share(step: int, done: float) -> float:
    """Of the learning rate: warm-up, then a cosine down to 2%."""
    return min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
