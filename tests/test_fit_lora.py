"""Weights fitted over inversions, with denoisers whose answer is known."""

import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.fit_lora import Place, Slopes, fit, slopes_of
from steer.samplers.inversion import Inversion
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.optimise import differentiating

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, RECTIFIED_FLOW])
SHAPE = (2, 4, 6, 6)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inverted(law, sigmas=(0.8, 0.5, 0.2, 0.0)):
    """Two pictures, on straight lines to the noise."""
    source, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    latents = tuple(law.noised(source, sigma, noise) for sigma in sigmas)
    return Inversion(sigmas, latents, law, "Toy", False)


class Shift:
    """A model that knows each picture, and adds `up * down`, one value for each channel, to what it says."""

    def __init__(self, law, loss, keep):
        self.law, self.loss, self.keep, self.places = law, loss, keep, []
        self.up, self.down = torch.zeros(4, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)

    def denoise(self, place: Place):
        return place.source + (self.up @ self.down).reshape(4, 1, 1)

    def __call__(self, place: Place) -> Slopes:
        self.places.append(place)

        def objective(estimate):
            return self.loss(estimate) + self.keep * (estimate - place.source).abs().mean()

        with differentiating():
            return slopes_of(self.denoise(place), objective, [self.up, self.down])

    def fitted(self, iterations=30, learning_rate=0.05):
        inversion = inverted(self.law)
        return list(fit(self, [self.up, self.down], inversion, learning_rate, iterations)), inversion


@LAWS
def test_without_a_loss_what_is_exact_stays_as_it_is(law):
    model = Shift(law, lambda estimate: 0.0 * estimate.sum(), keep=1.0)
    steps, inversion = model.fitted()
    assert not model.up.any() and torch.equal(model.down, torch.ones(1, 1))
    assert all(step.loss == 0.0 for step in steps)
    torch.testing.assert_close(steps[-1].x, inversion.latents[-1][1:], rtol=0, atol=1e-6)


@LAWS
def test_the_loss_is_met_where_nothing_holds_the_picture(law):
    """Pictures are moved by the wanted shift of the first channel, and by none of the others."""
    wanted = torch.tensor([0.5, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
    model = Shift(law, None, keep=0.0)
    model.loss = lambda estimate: (estimate - model.places[-1].source - wanted).square().mean()
    steps, _ = model.fitted(iterations=150)
    assert steps[-1].loss < 1e-4 * steps[0].loss
    torch.testing.assert_close((model.up @ model.down).detach().reshape(4, 1, 1), wanted, rtol=0, atol=0.01)


def test_what_keeps_the_picture_holds_against_a_weaker_loss():
    """A slope of 0.5 in the first channel alone against one of 1: the shift stays near nothing, Adam's step."""
    for keep, stays in ((1.0, True), (0.25, False)):
        model = Shift(VARIANCE_EXPLODING, lambda estimate: -0.5 * estimate[:, 0].mean() / 4, keep)
        model.fitted(40, 0.01)
        assert (float((model.up @ model.down).detach()[0]) < 0.05) == stays


@LAWS
def test_each_picture_is_gone_through_level_by_level_along_its_own_estimates(law):
    model = Shift(law, lambda estimate: -estimate.mean(), keep=0.5)
    steps, inversion = model.fitted(iterations=2)
    levels = inversion.sigmas[:-1]
    assert [(place.picture, place.sigma) for place in model.places] == 2 * [(p, s) for p in (0, 1) for s in levels]
    assert [(step.iteration, step.picture) for step in steps] == [
        (i, p) for i in (0, 1) for p in (0, 1) for _ in levels
    ]
    assert torch.equal(model.places[3].x, inversion.latents[0][1:])
    for place, step in zip(model.places, steps, strict=True):
        torch.testing.assert_close(step.x, law.step(place.x, step.denoised, place.sigma, place.next_sigma))
        assert not step.x.requires_grad and torch.equal(place.source, inversion.latents[-1][place.picture, None])


def test_an_unchanged_model_draws_the_picture_as_the_sampler_does():
    law, inversion = RECTIFIED_FLOW, inverted(RECTIFIED_FLOW)
    model = Shift(law, lambda estimate: 0.0 * estimate.sum(), keep=0.0)
    steps, _ = model.fitted(iterations=1)
    *_, last = ddim(lambda x, sigma: inversion.latents[-1][:1], inversion.latents[0][:1], inversion.sigmas, law)
    assert torch.equal(steps[2].x, last.x)


def test_the_gradient_is_the_objectives():
    """Against finite differences in double precision, through a curved model and a curved objective."""
    weight, x = normal(3, 3, seed=2).double().requires_grad_(), normal(3, 5, seed=3).double()

    def value(weight):
        return (torch.tanh(weight @ x).float() ** 2).sum()

    slopes = slopes_of(torch.tanh(weight @ x), lambda estimate: estimate.square().sum(), [weight])
    step = 1e-3 * torch.eye(3).double()[0][:, None] * torch.eye(3).double()[1]
    difference = float(value(weight.detach() + step) - value(weight.detach() - step)) / 2e-3
    assert slopes.value == pytest.approx(float(value(weight.detach())))
    assert float(slopes.gradients[0][0, 1]) == pytest.approx(difference, rel=1e-3)


def test_a_model_in_half_precision_gets_a_gradient_that_it_can_hold():
    """A slope of 1e-9 is 0 in float16."""
    weight = torch.ones(4, requires_grad=True)
    slopes = slopes_of((2.0 * weight).half(), lambda estimate: 1e-9 * estimate.sum(), [weight])
    torch.testing.assert_close(slopes.gradients[0], torch.full((4,), 2e-9))


def test_what_a_step_does_not_use_has_no_gradient():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert not slopes_of(used * 2.0, lambda estimate: estimate.sum(), [used, unused]).gradients[1].any()


def test_a_loss_that_is_no_number_is_an_error():
    model = Shift(VARIANCE_EXPLODING, lambda estimate: estimate.sum() * torch.nan, keep=1.0)
    with pytest.raises(ValueError, match=r"the loss is nan at iteration 1, picture 1, sigma 0.8; lower learning_rate"):
        model.fitted()
    assert not model.up.any()
