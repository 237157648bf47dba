"""Inpainting problems whose conditional law is known in closed form: mixtures of Gaussian fields."""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II: row k is its k-th wave."""
    wave = torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(pi * (torch.arange(size) + 0.5) * wave / size) * sqrt(2.0 / size)
    rows[0] /= sqrt(2.0)
    return rows


@dataclass(frozen=True)
class Mixture:
    """Modes that are Gaussian fields. weights (modes,); means and variances (modes, channels, height, width)."""

    weights: Tensor
    means: Tensor
    """In the picture."""
    variances: Tensor
    """Of the waves of the DCT, which are independent."""

    def waves(self, x: Tensor) -> Tensor:
        return cosines(x.shape[-2]).to(x) @ x @ cosines(x.shape[-1]).to(x).T

    def picture(self, waves: Tensor) -> Tensor:
        return cosines(waves.shape[-2]).to(waves).T @ waves @ cosines(waves.shape[-1]).to(waves)

    def denoise(self, x: Tensor, alpha: float, std: float) -> Tensor:
        """E[x0 | x] for x = alpha x0 + std n, (batch, channels, h, w)."""
        means, variances = self.waves(self.means).to(x), self.variances.to(x)
        off = self.waves(x)[:, None] - alpha * means
        total = alpha**2 * variances + std**2
        logits = self.weights.log().to(x) - 0.5 * (off**2 / total + total.log()).flatten(2).sum(2)
        estimates = means + alpha * variances / total * off
        return self.picture(torch.einsum("bk,bk...->b...", logits.softmax(1), estimates))

    def draw(self, generator: torch.Generator) -> Tensor:
        """One picture (channels, h, w)."""
        mode = int(torch.multinomial(self.weights, 1, generator=generator))
        waves = torch.randn(self.means.shape[1:], generator=generator, dtype=torch.float64)
        return self.means[mode] + self.picture(self.variances[mode].sqrt() * waves)


class Conditional:
    """The exact law of the hole of one picture: for each mode a probability, a mean and a covariance."""

    def __init__(self, mixture: Mixture, picture: Tensor, hole: Tensor):
        """picture (channels, h, w); hole (h, w), of bools."""
        inside, waves = hole.flatten(), torch.kron(cosines(hole.shape[0]), cosines(hole.shape[1]))
        known, logits, modes = picture.flatten(1)[:, ~inside], [], []
        for weight, means, variances in zip(mixture.weights, mixture.means.flatten(2), mixture.variances, strict=True):
            logit, parts = weight.log(), []
            for of_known, mean, variance in zip(known, means, variances.flatten(1), strict=True):
                covariance = waves.T @ (variance[:, None] * waves)
                off, seen = of_known - mean[~inside], covariance[~inside][:, ~inside]
                gain = torch.linalg.solve(seen, covariance[~inside][:, inside]).T
                left = covariance[inside][:, inside] - gain @ covariance[~inside][:, inside]
                values, vectors = torch.linalg.eigh((left + left.T) / 2)
                logit = logit - 0.5 * (off @ torch.linalg.solve(seen, off) + torch.linalg.slogdet(seen)[1])
                parts.append((mean[inside], gain @ off, values.clamp_min(1e-9), vectors))
            logits.append(logit)
            modes.append([torch.stack(part) for part in zip(*parts, strict=True)])
        self.inside, self.probabilities = inside, torch.stack(logits).softmax(0)
        self.means, self.shifts, self.values, self.vectors = (torch.stack(part) for part in zip(*modes, strict=True))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, channels, pixels of the hole)."""
        mode = torch.multinomial(self.probabilities, count, True, generator=generator)
        drawn = torch.randn(self.values[mode].shape, generator=generator, dtype=torch.float64)
        grain = (self.vectors[mode] @ (self.values[mode].sqrt() * drawn)[..., None])[..., 0]
        return self.means[mode] + self.shifts[mode] + grain

    def modes_of(self, holes: Tensor) -> Tensor:
        """Which mode each sample (samples, channels, pixels) is of by the exact law, its finest grain left out."""
        off = (holes[:, None] - self.means - self.shifts)[..., None, :] @ self.vectors
        spread = self.values.clamp_min(1e-3)
        fits = off[..., 0, :] ** 2 / spread + spread.log()
        return (self.probabilities.log() - 0.5 * fits.sum((2, 3))).argmax(1)

    def judged(self, pictures: Tensor, exact: Tensor) -> dict[str, float]:
        """Samples (samples, channels, h, w) beside the exact law.

        share: of the first mode; distance: total variation of the shares; slope: of the hole on what the known part
        says of it; variance: over the exact one, the mean over all directions; energy: the energy distance to `exact`
        samples, in thousandths of their mean distance.
        """
        holes = pictures.double().flatten(2)[..., self.inside]
        mode = self.modes_of(holes)
        shares = torch.bincount(mode, minlength=len(self.probabilities)) / len(mode)
        along, whole, spread, counted = 0.0, 0.0, 0.0, 0
        for index in mode.unique():
            part = holes[mode == index] - self.means[index]
            along = along + (part * self.shifts[index]).sum()
            whole = whole + len(part) * (self.shifts[index] ** 2).sum()
            if len(part) > 7:
                turned = ((part - part.mean(0))[..., None, :] @ self.vectors[index])[..., 0, :]
                spread = spread + (turned.var(0) / self.values[index]).mean() * len(part)
                counted += len(part)
        return {
            "share": float(shares[0]),
            "distance": float(0.5 * (shares - self.probabilities).abs().sum()),
            "slope": float(along / whole),
            "variance": float(spread / counted),
            "energy": energy(holes.flatten(1), exact.flatten(1)),
        }


def energy(ours: Tensor, exact: Tensor) -> float:
    def spread(of: Tensor) -> Tensor:
        return torch.cdist(of, of).sum() / (len(of) * (len(of) - 1))

    return float(1000 * (2 * torch.cdist(ours, exact).mean() - spread(ours) - spread(exact)) / spread(exact))


def smooth(size: int, scale: float = 2.0, power: float = 1.5) -> Tensor:
    """Variances of the waves of a smooth field of mean variance 1."""
    rows, columns = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    falling = (1.0 + (rows**2 + columns**2) / scale**2) ** -power
    return falling / falling.mean()


@dataclass(frozen=True)
class Problem:
    """Pictures of which a part is known, as many samples of each, and the exact laws of the holes."""

    name: str
    mixture: Mixture
    hole: Tensor
    pictures: Tensor
    samples: int

    def known(self) -> Tensor:
        """(pictures samples, channels, h, w), 0 in the hole."""
        return (self.pictures * ~self.hole).float().repeat_interleave(self.samples, 0)

    def judged(self, results: Tensor) -> dict[str, float]:
        """The figures of `Conditional.judged`, the mean over the pictures."""
        figures = []
        for index, (picture, part) in enumerate(zip(self.pictures, results.split(self.samples), strict=True)):
            law = Conditional(self.mixture, picture, self.hole)
            figures.append(law.judged(part, law.sample(512, torch.Generator().manual_seed(index))))
        return {key: sum(each[key] for each in figures) / len(figures) for key in figures[0]}


def planted(samples: int = 256, odds: float = 0.5) -> Problem:
    """Two modes, 4 x 16 x 16, that differ in the hole, its right half, and the log odds of one picture's first mode."""
    rows, columns = torch.meshgrid(*[torch.arange(16, dtype=torch.float64)] * 2, indexing="ij")
    bump = torch.exp(-((rows - 7.5) ** 2 + (columns - 11.0) ** 2) / 8.0)
    mean = bump * torch.tensor([1.0, -1.0, 0.5, 0.5], dtype=torch.float64)[:, None, None]
    variances = (0.5 * smooth(16, power=2.5)).expand(2, 4, 16, 16)
    mixture = Mixture(torch.full((2,), 0.5, dtype=torch.float64), torch.stack([mean, -mean]), variances)
    hole, picture = columns >= 8, mixture.draw(torch.Generator().manual_seed(3))

    def odds_of(picture: Tensor) -> float:
        first, second = Conditional(mixture, picture, hole).probabilities.log().tolist()
        return first - second

    # they are linear in what is known of the picture
    here, there = odds_of(picture), odds_of(picture + mean)
    return Problem("planted", mixture, hole, (picture + (odds - here) / (there - here) * mean)[None], samples)


def fields(samples: int = 64, pictures: int = 5, seed: int = 7) -> Problem:
    """Four modes of different covariances, 4 x 8 x 8; three rows and three columns are known."""
    generator, size, channels = torch.Generator().manual_seed(seed), 8, 4
    rows, columns = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    window = torch.exp(-((rows - 5.0) ** 2 + (columns - 5.0) ** 2) / 4.5)
    waves = torch.randn(4, channels, size, size, generator=generator, dtype=torch.float64)
    means = 0.4 * window * (cosines(size).T @ (waves * smooth(size, power=2.0).sqrt()) @ cosines(size))
    variances = torch.stack([0.4 * smooth(size, scale, 2.0) for scale in (1.8, 1.9, 2.0, 2.1)])
    mixture = Mixture(torch.full((4,), 0.25, dtype=torch.float64), means, variances[:, None].expand(4, channels, 8, 8))
    drawn = torch.stack([mixture.draw(torch.Generator().manual_seed(100 + index)) for index in range(pictures)])
    return Problem("fields", mixture, (rows >= 3) & (columns >= 3), drawn, samples)
