"""Denoisers whose answers are known in closed form: the oracles of the pure tests."""

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
