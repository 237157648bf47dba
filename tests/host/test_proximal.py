"""Gradient guidance with iterations: the estimate is solved for, exactly where that is known."""

from dataclasses import dataclass, field

import comfy.model_management
import pytest
import torch
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.tests.host_models import EPS, FLOW, V, closed_form, mean_conditioning, relative
from steer.tests.oracles import EULER

LAWS = [EPS, V, FLOW]
MEAN = 0.2  # x0 ~ N(MEAN, 1)


@dataclass(frozen=True)
class Reading:
    """`-log p(y | x0)` for y = x0 + noise e, read in every latent value."""

    read: float = 1.0
    noise: float = 0.6
    seen: list = field(default_factory=list)
    noisy = False
    patchers = ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        def loss(latent, sigma):
            self.seen.append(sigma)
            return 0.5 * (self.read - latent).square().flatten(1).sum(1) / self.noise**2

        return loss


def posterior(*readings):
    """Mean and variance of x0 given these readings."""
    precision = 1.0 + sum(1 / each.noise**2 for each in readings)
    return (MEAN + sum(each.read / each.noise**2 for each in readings)) / precision, 1 / precision


def solved(guider, loss, iterations=4, scale=1.0, mask=None, max_change=1000.0):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, False, mask, max_change, iterations)[0]


def known_guider(shapes, law, mean=MEAN, variance=1.0):
    return host_guider(closed_form(shapes[0], law, variance), mean_conditioning(mean), mean_conditioning(mean), 1.0)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("noise", [0.6, 0.05])
def test_the_posterior_is_sampled(shapes, law, noise):
    """Of data of unit variance, for which u^2 is exact: as by the conditional model, from the very top."""
    loss, x = Reading(noise=noise), noise_of((2, 4, 8, 8))
    guider = known_guider(shapes, law)
    sigmas = sigmas_of(guider.model_patcher, 12)
    expected = run(known_guider(shapes, law, *posterior(loss)), EULER, sigmas, x)
    assert relative(run(solved(guider, loss), EULER, sigmas, x), expected) < 1e-4
    assert relative(run(guider, EULER, sigmas, x), expected) > 0.1


@pytest.mark.parametrize("law", LAWS)
def test_two_losses_are_solved_together(shapes, law):
    losses, x = (Reading(1.0, 0.3), Reading(-0.5, 0.2)), noise_of((1, 4, 8, 8))
    guider = known_guider(shapes, law)
    sigmas = sigmas_of(guider.model_patcher, 8)
    expected = run(known_guider(shapes, law, *posterior(*losses)), EULER, sigmas, x)
    assert relative(run(solved(solved(guider, losses[0]), losses[1]), EULER, sigmas, x), expected) < 1e-4


@pytest.mark.parametrize("law", LAWS)
def test_no_scale_overshoots(shapes, law):
    """Far too strong: what was read, where one gradient goes as far as it is let."""
    guider, x = known_guider(shapes, law), noise_of((1, 4, 8, 8))
    sigmas, to_model = sigmas_of(guider.model_patcher, 8), guider.model_patcher.model.process_latent_in
    out = to_model(run(solved(guider, Reading(), scale=1e5), EULER, sigmas, x))
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=5e-3)
    once = to_model(run(solved(guider, Reading(), 1, 1e5), EULER, sigmas, x))
    assert (once - 1).abs().mean() > 10


def test_the_mask_is_where_the_estimate_may_move(shapes):
    """A soft mask is a factor of the variance: at 0.5 the posterior of a prior of half the variance."""
    guider, loss, x, mask = known_guider(shapes, EPS), Reading(), noise_of((1, 4, 8, 8)), torch.zeros(1, 64, 64)
    mask[..., 32:], mask[..., 48:] = 0.5, 1.0
    sigmas = torch.tensor([2.0, 0.0])
    plain, out = run(guider, EULER, sigmas, x), run(solved(guider, loss, 10, mask=mask), EULER, sigmas, x)
    assert torch.equal(out[..., :4], plain[..., :4])
    to_model = guider.model_patcher.model.process_latent_in
    plain, out = to_model(plain), to_model(out)
    for part, variance in ((slice(4, 6), 0.5 * 0.8), (slice(6, 8), 0.8)):  # u^2 = 4 / (1 + 4)
        gain = variance / (variance + loss.noise**2)
        expected = plain[..., part] + gain * (1.0 - plain[..., part])
        torch.testing.assert_close(out[..., part], expected, rtol=1e-3, atol=1e-3)


def test_the_limit_holds(shapes):
    guider, x, sigmas = known_guider(shapes, EPS), noise_of((2, 4, 8, 8)), torch.tensor([2.0, 0.0])
    to_model = guider.model_patcher.model.process_latent_in
    change = to_model(run(solved(guider, Reading(9.0), 5, 1e4, max_change=0.3), EULER, sigmas, x)) - to_model(
        run(guider, EULER, sigmas, x)
    )
    most = torch.full((2,), 0.3 * 0.8**0.5)
    torch.testing.assert_close(change.square().mean((1, 2, 3)).sqrt(), most, rtol=1e-3, atol=0)


@pytest.mark.parametrize("law", LAWS)
def test_scale_0_is_plain_bit_for_bit(shapes, law):
    guider, x = known_guider(shapes, law), noise_of((1, 4, 8, 8))
    sigmas = sigmas_of(guider.model_patcher, 4)
    assert torch.equal(run(solved(guider, Reading(), scale=0.0), EULER, sigmas, x), run(guider, EULER, sigmas, x))


class Satisfied(Reading):
    def start(self, run, latent_format, differentiable):
        return lambda latent, sigma: 0.0 * latent.flatten(1).sum(1)


def test_what_agrees_already_is_plain_bit_for_bit(shapes):
    guider, sigmas, x = known_guider(shapes, EPS), torch.tensor([2.0, 1.0, 0.0]), noise_of((1, 4, 8, 8))
    assert torch.equal(run(solved(guider, Satisfied()), EULER, sigmas, x), run(guider, EULER, sigmas, x))


def test_cost(shapes):
    model, rows = counted(closed_form(shapes[0], EPS))
    guider, loss = host_guider(model, mean_conditioning(0), mean_conditioning(0), 1.0), Reading()
    run(solved(guider, loss, 6), EULER, torch.tensor([3.0, 1.0, 0.0]), noise_of((2, 4, 8, 8)))
    assert rows == [2, 2] and loss.seen == [3.0] * 7 + [1.0] * 7


def test_a_batch_is_its_samples_alone(shapes):
    conds = encode(shapes[1], "a red circle on a blue background"), encode(shapes[1], "")
    guider, sampler = host_guider(shapes[0], *conds, 3.0), SteerDDIMSampler.execute(1.0)[0]
    sigmas, x = sigmas_of(shapes[0], 4), noise_of((2, 4, 16, 16))
    together = run(solved(guider, Waves()), sampler, sigmas, x)
    alone = torch.cat([run(solved(guider, Waves()), sampler, sigmas, x[i : i + 1]) for i in (0, 1)])
    assert relative(together, alone) < 1e-4


class Waves(Reading):
    """No quadratic one, with another curvature everywhere."""

    def start(self, run, latent_format, differentiable):
        return lambda latent, sigma: (2 * latent).cosh().flatten(1).sum(1)


class Drawing(Reading):
    """Draws at each call, as the CLIP losses do."""

    def start(self, run, latent_format, differentiable):
        draw = run.noise("loss")

        def loss(latent, sigma):
            drawn = draw(latent.new_empty(latent.shape))
            self.seen.append(drawn)
            return (latent - drawn).square().flatten(1).sum(1)

        return loss


def test_what_a_loss_draws_is_the_same_within_a_step(shapes):
    guider, loss, x = known_guider(shapes, EPS), Drawing(), noise_of((1, 4, 8, 8))
    run(solved(guider, loss, 3), EULER, torch.tensor([3.0, 1.0, 0.0]), x)
    first, second = loss.seen[:4], loss.seen[4:]
    assert len(second) == 4 and all(torch.equal(drawn, same[0]) for same in (first, second) for drawn in same)
    assert not torch.equal(first[0], second[0])
    once = Drawing()
    run(solved(guider, once, 1), EULER, torch.tensor([3.0, 1.0, 0.0]), x)
    assert len(once.seen) == 2 and not torch.equal(*once.seen)


def test_an_interrupt_is_heeded_between_two_gradients(shapes):
    class Interrupting(Reading):
        def start(self, run, latent_format, differentiable):
            def loss(latent, sigma):
                self.seen.append(sigma)
                if len(self.seen) == 3:
                    comfy.model_management.interrupt_current_processing(True)
                return latent.square().flatten(1).sum(1)

            return loss

    guider, loss = known_guider(shapes, EPS), Interrupting()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(solved(guider, loss, 9), EULER, torch.tensor([3.0, 0.0]), noise_of((1, 4, 8, 8)))
    assert len(loss.seen) == 3


def test_bad_input(shapes):
    guider = known_guider(shapes, EPS)
    with pytest.raises(ValueError, match="SteerGradientGuider: iterations is 5 with through_model on.*off"):
        SteerGradientGuider.execute(guider, Reading(), 1.0, 0.0, 1.0, True, None, 3.0, 5)

    class Noisy(Reading):
        noisy = True

    with pytest.raises(ValueError, match="SteerGradientGuider: iterations is 5.*noisy latent.*to 1"):
        solved(guider, Noisy(), 5)
    with pytest.raises(ValueError, match="SteerGradientGuider: iterations is 0; it needs to be from 1"):
        solved(guider, Reading(), 0)
