"""Losses that read the decoded estimate, one round another: it is decoded once, and what they change stays the same."""

from types import SimpleNamespace

import pytest
import torch
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import host_guider, noise_of, run
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host import vae as host_vae
from steer.nodes.measurement import SteerMeasurementLoss
from steer.nodes.palette import SteerPaletteLoss
from steer.nodes.runs.loss_terms import Acting, gradients_of, sum_and_gradient
from steer.samplers.measurement import Gray
from steer.tests.host_models import EPS, FLOW, closed_form, mean_conditioning, relative
from steer.tests.oracles import EULER, started

STEPS = torch.tensor([0.9, 0.4, 0.0])


def image(seed):
    return torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def losses(vae, other=None):
    return (
        SteerMeasurementLoss.execute(vae, image(1), 0.3, (Gray(),))[0],
        SteerPaletteLoss.execute(other or vae, image(2), 16)[0],
    )


def guided(guider, loss, scale=1.0, iterations=1, through_model=False):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model, None, 3.0, iterations)[0]


def known_guider(shapes, law=EPS):
    return host_guider(closed_form(shapes[0], law), mean_conditioning(0.1), mean_conditioning(0.1), 1.0)


class Counted:
    """How often a picture is decoded, and how often a gradient comes back to it."""

    def __init__(self, monkeypatch):
        self.decoded = self.back = 0
        original = host_vae.decoded

        def counted(*args):
            self.decoded += 1
            pictures = original(*args)
            pictures.register_hook(self.came_back)
            return pictures

        monkeypatch.setattr(host_vae, "decoded", counted)

    def came_back(self, gradient):
        self.back += 1


@pytest.mark.parametrize("through_model", [True, False])
def test_one_gradient_each_decodes_once_a_step(shapes, monkeypatch, through_model):
    guider = known_guider(shapes)
    for loss in losses(shapes[2]):
        guider = guided(guider, loss, 0.1, through_model=through_model)
    counted = Counted(monkeypatch)
    run(guider, EULER, STEPS, noise_of((1, 4, 8, 8)))
    # each has a limit of its own, so each has a way back of its own
    assert (counted.decoded, counted.back) == (2, 4)


def test_what_is_solved_for_is_decoded_and_comes_back_once(shapes, monkeypatch):
    guider = known_guider(shapes)
    for loss in losses(shapes[2]):
        guider = guided(guider, loss, iterations=3)
    counted = Counted(monkeypatch)
    run(guider, EULER, STEPS, noise_of((1, 4, 8, 8)))
    assert (counted.decoded, counted.back) == (2 * 4, 2 * 4)


def test_each_vae_decodes_for_itself(shapes, monkeypatch):
    guider = known_guider(shapes)
    for loss in losses(shapes[2], random_kl()):
        guider = guided(guider, loss, 0.1)
    counted = Counted(monkeypatch)
    run(guider, EULER, STEPS, noise_of((1, 4, 8, 8)))
    assert counted.decoded == 4


@pytest.mark.parametrize("law", [EPS, FLOW])
@pytest.mark.parametrize("through_model", [True, False])
def test_each_changes_what_it_changes_alone_to_the_last_bit(shapes, law, through_model):
    """Of one step: the changes add up."""
    guider, x, sigmas = known_guider(shapes, law), noise_of((1, 4, 8, 8)), torch.tensor([0.7, 0.0])
    first, second = losses(shapes[2])
    one = guided(guider, first, 0.1, through_model=through_model)
    plain, alone, both = (run(each, EULER, sigmas, x) for each in (
        guider, guided(guider, second, 10.0, through_model=through_model),
        guided(one, second, 10.0, through_model=through_model)))  # fmt: skip
    torch.testing.assert_close(both, run(one, EULER, sigmas, x) + alone - plain, rtol=1e-5, atol=1e-5)


def terms(shapes, latent):
    """Both losses in a run, as terms of scales 3 and -0.7."""
    return [
        Acting(SimpleNamespace(node="test", scale=scale), started(shapes, loss, latent), None, [])
        for loss, scale in zip(losses(shapes[2]), (3.0, -0.7), strict=True)
    ]


def test_gradients_are_those_of_each_alone(shapes):
    latent = noise_of((2, 4, 8, 8)).to(shapes[2].device)
    acting = terms(shapes, latent)
    alone = [gradients_of("test", [item.loss], latent, 1.0)[0] for item in acting]
    together = gradients_of("test", [item.loss for item in terms(shapes, latent)], latent, 1.0)
    assert all(relative(a, b) < 1e-6 for a, b in zip(together, alone, strict=True))
    values, slope = sum_and_gradient(terms(shapes, latent), latent, 1.0)
    assert relative(slope, 3.0 * alone[0] - 0.7 * alone[1]) < 1e-5
    with torch.no_grad():
        first, second = (item.loss(latent, 1.0) for item in terms(shapes, latent))
    torch.testing.assert_close(values, 3.0 * first - 0.7 * second)


def test_the_sum_of_one_is_itself_to_the_last_bit(shapes):
    latent = noise_of((2, 4, 8, 8)).to(shapes[2].device)
    (item, _) = terms(shapes, latent)
    (slope,) = gradients_of("test", [item.loss], latent, 1.0)
    assert torch.equal(sum_and_gradient([item], latent, 1.0)[1], 3.0 * slope)
