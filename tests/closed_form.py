"""Denoisers whose answers are known in closed form: the oracles of the pure tests."""

from math import sqrt

import torch


def gaussian_denoiser(law, mean, covariance):
    """E[x0 | x] for x0 ~ N(mean, covariance), x (batch, d) at level sigma under the law."""
    eye = torch.eye(len(mean), dtype=covariance.dtype)

    def denoise(x, sigma):
        alpha = law.alpha(sigma)
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + law.std(sigma) ** 2 * eye)
        return mean + (x - alpha * mean) @ gain.T

    return denoise


def standard_noise(seed):
    """A noise source with one generator for the whole batch (the statistics do not need more)."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def log_spaced(high, low, steps):
    """`steps` log-spaced levels from high to low, then 0, as floats."""
    levels = torch.logspace(torch.tensor(high).log10(), torch.tensor(low).log10(), steps, dtype=torch.float64)
    return [*levels.tolist(), 0.0]


def last(steps):
    """The latent a sampler ends with."""
    for step in steps:  # noqa: B007
        pass
    return step.x


def at_rest(moved, std, slope, rounds):
    """The variance at rest of a Langevin move of one direction, and its matrix's spectral radius.

    `moved(x, velocity, noise)` is where one move of `langevin` leads; `slope` is alpha times the estimate's. A move is
    linear: its matrix is read off by unit vectors, and the covariance of (x, velocity) is carried through so many.
    """
    columns = []
    for unit in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        x, velocity, _ = unit
        kicked, half = velocity + sqrt(2.0) * (slope - 1.0) * x / std, 0.5 * sqrt(2.0) * std
        after = float(moved(*unit))
        columns.append((after, (after - x - half * kicked) / half))  # the velocity follows from where x is left
    matrix = torch.tensor(columns, dtype=torch.float64).T  # (x', velocity') by (x, velocity, noise)
    covariance, noise = torch.eye(2, dtype=torch.float64), matrix[:, 2:] @ matrix[:, 2:].T
    for _ in range(rounds):
        covariance = matrix[:, :2] @ covariance @ matrix[:, :2].T + noise
    return float(covariance[0, 0]), float(torch.linalg.eigvals(matrix[:, :2]).abs().max())
