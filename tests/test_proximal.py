"""The proximal estimate against the exact solution of quadratic problems."""

import pytest
import torch
from steer.samplers.proximal import Pair, direction, proximal_change

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Quadratic:
    """`|A z - y|^2 / (2 noise^2)` for vectors of 12, and what was asked of it."""

    def __init__(self, noise=0.3, rows=5):
        self.matrix, self.noise, self.values = randn(rows, 12), noise, []
        self.y = randn(rows, seed=1)

    def __call__(self, z):
        gap = z @ self.matrix.T - self.y
        value = gap.square().sum(1) / (2 * self.noise**2)
        self.values.append(value)
        return value, gap @ self.matrix / self.noise**2

    def solution(self, denoised, spread):
        """The minimum, by the normal equations; spread (batch or 1, 12)."""
        out = []
        for row, u in zip(denoised, spread.expand_as(denoised), strict=True):
            reads = self.matrix * u  # of the move in units of u
            left = reads.T @ reads / self.noise**2 + torch.eye(12, dtype=DOUBLE)
            gap = self.y - self.matrix @ row
            out.append(row + u * torch.linalg.solve(left, reads.T @ gap / self.noise**2))
        return torch.stack(out)


@pytest.mark.parametrize("u", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.05, 0.3, 3.0])
def test_solves_quadratic_losses(u, noise):
    loss, denoised, spread = Quadratic(noise), randn(3, 12, seed=2), torch.full((1, 12), u, dtype=DOUBLE)
    out = denoised + proximal_change(loss, denoised, spread, 120)
    torch.testing.assert_close(out, loss.solution(denoised, spread), rtol=1e-6, atol=1e-6)


def test_a_curvature_alike_in_all_directions_takes_two_steps():
    """The trial tells it, and the next step ends there."""
    y = randn(2, 12, seed=3)
    out = proximal_change(lambda z: ((z - y).square().sum(1) / 0.02, (z - y) / 0.01), y * 0, torch.tensor(0.5), 2)
    torch.testing.assert_close(out, y * 0.25 / (0.25 + 0.01))


def test_a_hard_loss_is_a_projection():
    """noise -> 0: of all z that agree with the measurement the one that is nearest to D."""
    loss, denoised = Quadratic(1e-3), randn(2, 12, seed=2)
    z = denoised + proximal_change(loss, denoised, torch.tensor(0.7, dtype=DOUBLE), 200)
    torch.testing.assert_close(z @ loss.matrix.T, loss.y.expand(2, 5), rtol=0, atol=1e-3)
    nearest = denoised + (loss.y - denoised @ loss.matrix.T) @ torch.linalg.pinv(loss.matrix).T
    torch.testing.assert_close(z, nearest, rtol=0, atol=1e-3)


def test_gray_in_closed_form():
    """z + u^2 (y - w z) w / (noise^2 + u^2 |w|^2), for each pixel."""
    weights, noise, u = torch.tensor([0.299, 0.587, 0.114], dtype=DOUBLE), 0.05, 0.4
    y, denoised = randn(2, 4, 4, seed=5), randn(2, 3, 4, 4, seed=6)

    def loss(z):
        gap = torch.einsum("c,bchw->bhw", weights, z) - y
        return gap.square().sum((1, 2)) / (2 * noise**2), weights[:, None, None] * gap[:, None] / noise**2

    gap = y - torch.einsum("c,bchw->bhw", weights, denoised)
    exact = u**2 * gap[:, None] * weights[:, None, None] / (noise**2 + u**2 * weights.square().sum())
    torch.testing.assert_close(proximal_change(loss, denoised, torch.tensor(u), 30), exact, rtol=1e-8, atol=1e-8)


def test_where_the_spread_is_0_nothing_moves():
    loss, denoised, spread = Quadratic(), randn(3, 12, seed=2), torch.rand(3, 12, dtype=DOUBLE)
    spread[:, ::2] = 0.0
    change = proximal_change(loss, denoised, spread, 80)
    assert not change[:, ::2].any() and change[:, 1::2].all()
    torch.testing.assert_close(denoised + change, loss.solution(denoised, spread), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_never_rises_with_the_iterations(seed):
    denoised, u = randn(2, 12, seed=seed), 0.8

    def objective(loss, change):
        return loss(denoised + change)[0] + change.square().sum(1) / (2 * u**2)

    def wavy(z):
        """Not convex, with minima everywhere."""
        return 40 * (1 - (9 * z).cos()).sum(1), 360 * (9 * z).sin()

    for loss in (Quadratic(0.05), wavy):
        values = [objective(loss, torch.zeros_like(denoised))]
        values += [objective(loss, proximal_change(loss, denoised, torch.tensor(u), n)) for n in range(1, 30)]
        assert all((after <= before + 1e-9).all() for before, after in zip(values, values[1:], strict=False))
        assert (values[-1] < values[0]).all()


def test_what_agrees_already_stays_bit_for_bit_and_is_asked_once():
    denoised, calls = randn(2, 12, seed=2), []

    def satisfied(z):
        calls.append(z)
        return torch.zeros(2), torch.zeros_like(z)

    assert torch.equal(denoised + proximal_change(satisfied, denoised, torch.tensor(0.5), 10), denoised)
    assert len(calls) == 1


def test_cost():
    for iterations in (1, 2, 7):
        loss = Quadratic()
        proximal_change(loss, randn(2, 12), torch.tensor(0.5), iterations)
        assert len(loss.values) == iterations + 1


def test_a_batch_is_its_samples_alone():
    """One that agrees already among others too."""
    loss, denoised = Quadratic(), randn(4, 12, seed=2)
    denoised[2] = torch.linalg.pinv(loss.matrix) @ loss.y
    together = proximal_change(loss, denoised, torch.tensor(0.5), 6)
    alone = torch.cat([proximal_change(loss, row[None], torch.tensor(0.5), 6) for row in denoised])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_direction():
    """Newton's where the steps tell all of the curvature; of a way that is not convex nothing is believed."""
    curvature, slope = torch.tensor([[4.0, 9.0]], dtype=DOUBLE), torch.tensor([[2.0, 3.0]], dtype=DOUBLE)
    steps = torch.eye(2, dtype=DOUBLE)[:, None]
    known = [Pair(step, curvature * step) for step in steps]
    torch.testing.assert_close(direction(slope, known), -slope / curvature)
    hill = Pair(steps[0], -steps[0])
    assert torch.equal(direction(slope, [hill]), direction(slope, []))
