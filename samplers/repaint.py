"""RePaint (Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1, jump schedule of its appendix)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from .core import Denoiser, Step, descending
from .masks import composite, keep
from .noise_law import Noise, NoiseLaw


def jump_schedule(steps: int, resamples: int, jump_length: int) -> list[int]:
    """Positions in the sigmas to visit, from 0 to `steps`, each one away from the last.

    Walks down; on reaching each multiple of jump_length for the first `resamples - 1` times it goes back up
    jump_length positions. A schedule of at most jump_length steps has no jumps.
    """
    if resamples < 1 or jump_length < 1:
        raise ValueError(f"resamples is {resamples} and jump_length {jump_length}; both need to be at least 1")
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)
    time = steps - 1  # the paper's time counts down to 0, and -1 is the clean picture
    times = [time]
    while time >= 1:
        time -= 1
        times.append(time)
        if jumps.get(time, 0) > 0:
            jumps[time] -= 1
            times.extend(range(time + 1, time + jump_length + 1))
            time += jump_length
    return [steps - 1 - time for time in times] + [steps]


def model_calls(steps: int, resamples: int, jump_length: int) -> int:
    """How often `repaint` calls the model: `steps + jumps (resamples - 1) jump_length`."""
    return sum(after > before for before, after in pairwise(jump_schedule(steps, resamples, jump_length)))


def repaint(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    law: NoiseLaw,
    known: Tensor,
    mask: Tensor,
    noise: Noise,
    known_noise: Noise,
    resamples: int = 10,
    jump_length: int = 10,
    eta: float = 1.0,
) -> Iterator[Step]:
    """Inpaints `known` where mask is 1, starting from x at level sigmas[0].

    x, known: (batch, channels, ...); mask: broadcastable to them. Before each model call the kept region is the
    source at that level with fresh noise (line 5; the paper's schedule re-harmonises it by jumping back up, line 10).
    The result is composited with `known`, which the paper leaves out: what is kept is exact. `noise` and
    `known_noise` are separate streams, so that with nothing kept this is plain ancestral sampling.
    """
    sigmas = descending(sigmas)
    last = len(sigmas) - 1
    for at, to in pairwise(jump_schedule(last, resamples, jump_length)):
        sigma, next_sigma = sigmas[at], sigmas[to]
        if to < at:
            x = law.jump(x, sigma, next_sigma, noise)
            continue
        x = keep(x, law.noised(known, sigma, known_noise(x)), mask)
        denoised = composite(denoise(x, sigma), known, mask)
        x = law.step(x, denoised, sigma, next_sigma, eta, noise)
        if to == last:
            x = keep(x, law.noised(known, next_sigma, known_noise(x)), mask)
        yield Step(x, denoised, next_sigma)
