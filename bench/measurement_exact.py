"""Losses of measurements beside the exact posterior, in closed form: each way to step, by what was measured."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log10, sqrt

import torch
from torch import Tensor

from ..lab.world.metrics import markdown_table
from ..samplers.ddim import ddim
from ..samplers.gradient_guidance import change_by_estimate, limited, undecided
from ..samplers.measurement import gaussian
from ..samplers.noise_law import VARIANCE_EXPLODING
from ..samplers.proximal import proximal_change

LAW, COUNT, STEPS, SAMPLES = VARIANCE_EXPLODING, 64, 30, 512
NOISE, REACH = 0.1, 8.0
DOUBLE = torch.float64


def run() -> str:
    problems = [Problem(name, matrix) for name, matrix in matrices().items()]
    rows = [{"": name, **{problem.name: cell(problem, *way) for problem in problems}} for name, way in ways().items()]
    spread = ", ".join(f"{problem.name} {float(problem.posterior[1].mean()):.2f}" for problem in problems)
    return f"{TEXT}\nStandard deviations of the posterior: {spread}.\n\n{markdown_table(rows)}"


TEXT = f"""# Measurement losses beside the exact posterior

{COUNT} values in a row, normal with variance 1 and correlation exp(-distance / {REACH:g}), of which something was
measured with noise of std {NOISE:g}; {STEPS} steps of DDIM, levels evenly spaced in log sigma from 80 to .03, {SAMPLES}
samples. RMS error of the samples' mean, and their standard deviation over the posterior's. The exact conditional
denoiser is wrong by chance and by its last step alone. Solved: the proximal estimate by its normal equations;
iterations: by `samplers/proximal.py`; one gradient: through_model off, `max_change` 3; DPS: the gradient of the norm
through the model, of weight 1.
"""

Change = Callable[["Problem", Tensor, float], Tensor]


def matrices() -> dict[str, Tensor]:
    def pool(size: int) -> Tensor:
        return torch.block_diag(*[torch.full((1, size), 1.0 / size, dtype=DOUBLE)] * (COUNT // size))

    kept = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))[: COUNT // 2].sort().values
    row = gaussian(3.0).sum(0)
    padded = torch.nn.functional.pad(torch.eye(COUNT, dtype=DOUBLE)[:, None], [len(row) // 2] * 2, mode="reflect")
    blur = torch.nn.functional.conv1d(padded, row[None, None])[:, 0].T
    return {"pool 4": pool(4), "pool 8": pool(8), "half missing": torch.eye(COUNT, dtype=DOUBLE)[kept], "blur 3": blur}


class Problem:
    """x0 ~ N(0, C) and y = A x0 + noise e."""

    def __init__(self, name: str, matrix: Tensor):
        at = torch.arange(COUNT, dtype=DOUBLE)
        self.name, self.matrix = name, matrix
        self.covariance = torch.exp(-(at[:, None] - at).abs() / REACH)
        drawn = torch.Generator().manual_seed(1)
        truth = torch.linalg.cholesky(self.covariance) @ torch.randn(COUNT, generator=drawn, dtype=DOUBLE)
        self.y = matrix @ truth + NOISE * torch.randn(len(matrix), generator=drawn, dtype=DOUBLE)

    def gain(self, sigma: float) -> Tensor:
        """dD/dx of the denoiser, which is linear."""
        return torch.linalg.solve(self.covariance + sigma**2 * torch.eye(COUNT, dtype=DOUBLE), self.covariance)

    def given(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (batch, 64) and covariance with the measurement, of a normal law without."""
        reads = self.matrix @ covariance
        spread = reads @ self.matrix.T + NOISE**2 * torch.eye(len(self.y), dtype=DOUBLE)
        gap = self.y - mean @ self.matrix.T
        return mean + torch.linalg.solve(spread, gap.T).T @ reads, covariance - reads.T @ torch.linalg.solve(
            spread, reads
        )

    @property
    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviations."""
        mean, covariance = self.given(torch.zeros(1, COUNT, dtype=DOUBLE), self.covariance)
        return mean[0], covariance.diagonal().sqrt()

    def loss(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gap = z @ self.matrix.T - self.y
        return gap.square().sum(1) / (2 * NOISE**2), gap @ self.matrix / NOISE**2


@dataclass(frozen=True)
class Iterated:
    iterations: int

    def __call__(self, problem: Problem, denoised: Tensor, sigma: float) -> Tensor:
        spread = torch.tensor(sqrt(undecided(sigma, LAW)), dtype=DOUBLE)
        return denoised + proximal_change(problem.loss, denoised, spread, self.iterations)


def solved(problem: Problem, denoised: Tensor, sigma: float) -> Tensor:
    """The posterior's mean for a picture that given x has the variance u^2 in every value."""
    return problem.given(denoised, undecided(sigma, LAW) * torch.eye(COUNT, dtype=DOUBLE))[0]


def exact(problem: Problem, denoised: Tensor, sigma: float) -> Tensor:
    """The conditional denoiser: what is left of the covariance at this level."""
    gain = problem.gain(sigma)
    return problem.given(denoised, problem.covariance - gain @ problem.covariance)[0]


def pigdm(problem: Problem, denoised: Tensor, sigma: float) -> Tensor:
    """Through the model with A A^T, the variance of each value taken to be u^2 (Song et al. 2023, eq. 8)."""
    variance = undecided(sigma, LAW)
    spread = variance * problem.matrix @ problem.matrix.T + NOISE**2 * torch.eye(len(problem.y), dtype=DOUBLE)
    gap = torch.linalg.solve(spread, (problem.y - denoised @ problem.matrix.T).T).T
    return denoised + sigma**2 * gap @ problem.matrix @ problem.gain(sigma)


def once(problem: Problem, denoised: Tensor, sigma: float, most: float = 3.0) -> Tensor:
    change = change_by_estimate(problem.loss(denoised)[1], sigma, LAW)
    return denoised + limited(change, sigma, LAW, most)


def dps(problem: Problem, denoised: Tensor, sigma: float) -> Tensor:
    """The step along the gradient of |A D - y| through the model, of length 1 (Chung et al. 2023, section 4)."""
    gap = problem.y - denoised @ problem.matrix.T
    slope = gap @ problem.matrix @ problem.gain(sigma)
    return denoised + slope / gap.norm(dim=1, keepdim=True).clamp(min=1e-12)


def ways() -> dict[str, tuple[Change, float]]:
    """What becomes of the estimate, and eta, by name."""
    return {
        "exact conditional denoiser, eta 1": (exact, 1.0),
        "PiGDM through the model, eta 1": (pigdm, 1.0),
        "solved, eta 1": (solved, 1.0),
        "solved, eta 0": (solved, 0.0),
        "5 iterations, eta 1": (Iterated(5), 1.0),
        "10 iterations, eta 1": (Iterated(10), 1.0),
        "one gradient, max_change 3, eta 1": (once, 1.0),
        "DPS, eta 1": (dps, 1.0),
    }


def sampled(problem: Problem, change: Change, eta: float) -> Tensor:
    """(samples, 64)"""
    levels = [*torch.logspace(log10(80.0), log10(0.03), STEPS, dtype=DOUBLE).tolist(), 0.0]
    drawn = torch.Generator().manual_seed(2)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=drawn, dtype=DOUBLE)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return change(problem, x @ problem.gain(sigma), sigma)

    x = levels[0] * noise(torch.zeros(SAMPLES, COUNT))
    *_, last = ddim(denoise, x, levels, LAW, eta, noise)
    return last.x


def figures(problem: Problem, change: Change, eta: float) -> tuple[float, float]:
    """The RMS error of the mean, and the samples' standard deviation over the posterior's."""
    x, (mean, std) = sampled(problem, change, eta), problem.posterior
    return float((x.mean(0) - mean).square().mean().sqrt()), float((x.std(0) / std).mean())


def cell(problem: Problem, change: Change, eta: float) -> str:
    error, spread = figures(problem, change, eta)
    return f"{error:.3f}, {spread:.2f}"
