"""Measurement Loss on the host: through the VAE, to pictures that agree with what was measured."""

from functools import partial

import pytest
import torch
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import counted, host_guider, noise_of, run
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host import Differentiable, gradients
from steer.nodes.host import vae as host_vae
from steer.nodes.measurement import (
    SteerBlurOperator,
    SteerCropOperator,
    SteerGrayOperator,
    SteerJPEGOperator,
    SteerMeasurementLoss,
    SteerResizeOperator,
)
from steer.samplers.jpeg import JPEG
from steer.samplers.measurement import Blur, Crop, Gray, Resize, fitted, squared_gaps
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, V, closed_form, mean_conditioning, relative
from steer.tests.oracles import EULER

OPERATORS = {
    "none": None,
    "gray": SteerGrayOperator.execute()[0],
    "small": SteerResizeOperator.execute("area", 16, 16)[0],
    "blurred": SteerBlurOperator.execute(2.0, 3, 30.0)[0],
    "part": SteerCropOperator.execute(16, 8, 32, 40)[0],
    "JPEG": SteerJPEGOperator.execute(10, True)[0],
    "gray, small, JPEG": SteerJPEGOperator.execute(
        20, False, SteerResizeOperator.execute("bicubic", 32, 32, SteerGrayOperator.execute()[0])[0]
    )[0],
}
SIZES = {"small": (16, 16), "part": (40, 32), "gray, small, JPEG": (32, 32)}


def image_for(name, batch=1):
    return torch.rand(batch, *SIZES.get(name, (64, 64)), 3, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25


def measured(vae, name, batch=1):
    """What the operators make of pictures that the VAE can draw."""
    pictures = unclamped(vae, 3.0 * noise_of((batch, 4, 8, 8), 7))
    size = SIZES.get(name, (64, 64))
    for operator in fitted(OPERATORS[name] or (), (64, 64), size):
        pictures = pictures if isinstance(operator, Gray | JPEG) else operator(pictures)
    return pictures.movedim(1, -1)


def solved(guider, loss, scale=1.0, iterations=8, max_change=1000.0):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, False, None, max_change, iterations)[0]


def known_guider(shapes, law, variance=1.0):
    return host_guider(closed_form(shapes[0], law, variance), mean_conditioning(0.1), mean_conditioning(0.1), 1.0)


def unclamped(vae, latent):
    """(batch, 3, h, w), 0 to 1 but for what the host would clamp."""
    return (vae.first_stage_model.decode(latent) + 1.0) / 2.0


def gap(vae, loss, latent):
    """Each picture's squared distance to what was measured, weights and all."""
    pictures = unclamped(vae, latent)
    image = loss.image.movedim(-1, 1)
    weight = torch.ones_like(image[:, :1]) if loss.weight is None else loss.weight[:, None]
    return squared_gaps(fitted(loss.operators, pictures.shape[-2:], image.shape[-2:]), image, weight)(pictures)


@pytest.mark.parametrize("name, law", [*[(name, EPS) for name in OPERATORS], ("gray", V), ("small", FLOW)])
def test_the_estimate_comes_to_agree(shapes, law, name):
    """One step: closer to what was measured with more iterations."""
    guider, vae, x = known_guider(shapes, law), shapes[2], noise_of((1, 4, 8, 8))
    loss = SteerMeasurementLoss.execute(vae, measured(vae, name), 0.05, OPERATORS[name])[0]
    sigmas = torch.tensor([0.7, 0.0])
    guiders = guider, solved(guider, loss, iterations=3), solved(guider, loss, iterations=12)
    plain, few, more = (float(gap(vae, loss, run(each, EULER, sigmas, x))) for each in guiders)
    assert few < plain and more < few and more < 0.85 * plain


class Seen:
    """What a loss gets to see."""

    noisy, patchers = False, ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        def loss(latent, sigma):
            self.latent = latent_format.process_out(latent.detach())
            return 0.0 * latent.flatten(1).sum(1)

        return loss


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_what_agrees_already_stays_bit_for_bit(shapes, law):
    guider, vae, x, sigmas = known_guider(shapes, law), shapes[2], noise_of((1, 4, 8, 8)), torch.tensor([0.7, 0.0])
    seen = Seen()
    plain = run(solved(guider, seen), EULER, sigmas, x)
    with gradients():  # to the last bit as the loss decodes it
        image = host_vae.decoded(vae, Differentiable(vae.patcher), seen.latent).detach().movedim(1, -1)
    for name in ("none", "gray", "blurred", "JPEG"):
        measured = image
        if name == "blurred":
            measured = OPERATORS[name][0](image.movedim(-1, 1)).movedim(1, -1)
        loss = SteerMeasurementLoss.execute(vae, measured, 0.05, OPERATORS[name])[0]
        for iterations in (1, 5):
            assert torch.equal(run(solved(guider, loss, 1.0, iterations), EULER, sigmas, x), plain), name


def test_the_gradient_is_the_losss_derivative(shapes):
    """By finite differences of the host's own decoding, with a weight."""
    guider, vae, x, sigmas = known_guider(shapes, EPS), shapes[2], noise_of((1, 4, 8, 8)), torch.tensor([1.0, 0.0])
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1.0
    loss = SteerMeasurementLoss.execute(vae, image_for("small"), 0.5, OPERATORS["small"], mask)[0]
    plain, moved = (run(each, EULER, sigmas, x) for each in (guider, solved(guider, loss, 1e-3, 1)))
    scale = guider.model_patcher.model.latent_format.scale_factor
    change = (moved - plain) * scale / 1e-3
    direction = change / change.norm()
    slopes = [
        float(gap(vae, loss, (plain * scale + step * direction) / scale)) / (2 * 0.5**2) for step in (0.02, -0.02)
    ]
    # the change is -u^2 dL/dD, and u^2 = 1/2 here
    assert float(change.norm()) == pytest.approx(-0.5 * (slopes[0] - slopes[1]) / 0.04, rel=0.03)


def test_where_the_mask_is_0_the_image_does_not_count(shapes):
    vae, x, sigmas, guider = shapes[2], noise_of((1, 4, 8, 8)), torch.tensor([1.0, 0.0]), known_guider(shapes, EPS)
    image, mask, outs = image_for("gray"), torch.zeros(1, 64, 64), []
    mask[..., :32] = 1.0
    for right in (0.0, 1.0):
        image[:, :, 32:] = right
        loss = SteerMeasurementLoss.execute(vae, image, 0.05, OPERATORS["gray"], mask)[0]
        outs.append(run(solved(guider, loss), EULER, sigmas, x))
    assert torch.equal(*outs)
    nothing = SteerMeasurementLoss.execute(vae, image, 0.05, None, mask * 0)[0]
    assert torch.equal(run(solved(guider, nothing), EULER, sigmas, x), run(guider, EULER, sigmas, x))


@pytest.mark.parametrize("name", ["gray", "blurred"])
def test_a_batch_with_images_of_its_own_is_its_pictures_alone(shapes, name):
    """Whatever is beside a picture, up to the rounding of a batch, which differences for the curvature make larger."""
    guider, vae, x = known_guider(shapes, EPS), shapes[2], noise_of((3, 4, 8, 8))
    sigmas, images = torch.tensor([1.0, 0.5, 0.0]), measured(vae, name, 3)

    def out(*of):
        loss = SteerMeasurementLoss.execute(vae, images[list(of)], 0.1, OPERATORS[name])[0]
        return run(solved(guider, loss, iterations=3), EULER, sigmas, x[list(of)])

    together = out(0, 1)
    assert relative(out(0, 2)[:1], together[:1]) < 1e-5
    alone = torch.cat([out(0), out(1)])
    assert relative(together, alone) < 0.2 * relative(together, alone.flip(0))


def refused(shapes, message, latent=(1, 4, 8, 8), vae=None, **inputs):
    """Before the first model call."""
    model, rows = counted(closed_form(shapes[0], EPS))
    guider = host_guider(model, mean_conditioning(0), mean_conditioning(0), 1.0)
    with pytest.raises(ValueError, match=message):
        loss = SteerMeasurementLoss.execute(
            **{"vae": vae or shapes[2], "image": image_for("none"), "noise": 0.05} | inputs
        )
        run(solved(guider, loss[0]), EULER, torch.tensor([1.0, 0.0]), noise_of(latent))
    assert not rows


def test_bad_input(shapes):
    small = torch.rand(1, 16, 16, 3)
    refused(shapes, "SteerGradientGuider: image is 16x16 and the picture of latent_image 64x64; say", image=small)
    refused(shapes, "16x16 and the picture .*after the operators, 64x64", image=small, operator=OPERATORS["gray"])
    refused(shapes, "of another aspect", image=torch.rand(1, 16, 24, 3), operator=(Resize(),))
    refused(shapes, "ends beyond", image=torch.rand(1, 32, 64, 3), operator=(Crop(8, 0),))
    refused(shapes, "JPEG's blocks are 16x16", image=torch.rand(1, 8, 8, 3), operator=(Resize(), JPEG()))
    refused(shapes, "SteerMeasurementLoss: image has shape", image=torch.rand(1, 64, 64))
    refused(shapes, "SteerMeasurementLoss: the mask is 64x32 .*another aspect", mask=torch.ones(1, 32, 64))
    refused(shapes, "SteerMeasurementLoss: the batches do not fit: 2 of image, 3 of mask",
            image=torch.rand(2, 64, 64, 3), mask=torch.ones(3, 64, 64))  # fmt: skip
    refused(shapes, "3 of image for a batch of 2", latent=(2, 4, 8, 8), image=torch.rand(3, 64, 64, 3))
    refused(shapes, "SteerMeasurementLoss: noise is 0", noise=0.0)
    refused(shapes, "SteerMeasurementLoss: operator is 'gray'; it needs the operator of", operator="gray")
    other = random_kl()
    other.latent_channels = 16
    refused(shapes, "vae has 16 latent channels and the model works on 4", vae=other)


def test_operators_refuse_what_does_not_go_together():
    with pytest.raises(ValueError, match="SteerGrayOperator: operator ends with SteerJPEGOperator.*be the last"):
        SteerGrayOperator.execute(OPERATORS["JPEG"])
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"SteerJPEGOperator: quality is {quality}; .*from 1 to 100"):
            SteerJPEGOperator.execute(quality, True)
    with pytest.raises(ValueError, match="SteerResizeOperator: width is 16 and height 0; give both"):
        SteerResizeOperator.execute("area", 16, 0)
    with pytest.raises(ValueError, match="SteerResizeOperator: method is 'nearest'"):
        SteerResizeOperator.execute("nearest", 0, 0)
    chain = SteerJPEGOperator.execute(50, False, SteerBlurOperator.execute(1.0, 1, 0.0, OPERATORS["gray"])[0])[0]
    assert chain == (Gray(), Blur(1.0), JPEG(50, False))


def on_family(family, operators=()):
    """One step from a level where the VAE's gradients are tame, on the family's own picture in other colours."""
    guider, vae, sigmas = oracles.guider_of(family), family.vae(), oracles.from_level(family, 1)
    given = oracles.EULER, sigmas, oracles.noise_for(family), family.picture()
    pictures = vae.decode(family.picture()).flatten(0, -4)
    image = 0.25 + 0.5 * torch.rand(pictures.shape, generator=torch.Generator().manual_seed(1))
    loss = SteerMeasurementLoss.execute(vae, image, 0.2, operators or None)[0]

    def distance(latent):
        pictures = vae.decode(latent).flatten(0, -4).movedim(-1, 1)
        gaps = squared_gaps(
            fitted(operators, pictures.shape[-2:], image.shape[1:3]), image.movedim(-1, 1), 1.0 + 0 * pictures[:, :1]
        )
        return float(gaps(pictures).sum())

    plain = run(guider, *given)
    assert torch.equal(run(solved(guider, loss, 0.0), *given), plain)
    assert distance(run(solved(guider, loss, iterations=6), *given)) < 0.99 * distance(plain)


def check_operator(world, given, run, output):
    """It does something to a picture, or says what does not fit."""
    *_, operator = output[0]
    picture = torch.rand(1, 3, 64, 64)
    try:
        operator = operator.fitted((64, 64), (32, 32))
    except ValueError as error:
        assert "64x64" in str(error)
        return
    if not isinstance(operator, JPEG):
        out = operator(picture)
        assert torch.isfinite(out).all() and tuple(out.shape[-2:]) == operator.size((64, 64))


FALLS = "one solved step brings the picture closer to what was measured; scale 0 is plain bit for bit"
ORACLE = {
    "SteerMeasurementLoss": (FALLS, on_family),
    "SteerGrayOperator": (FALLS, partial(on_family, operators=(Gray(),))),
    "SteerResizeOperator": (FALLS, partial(on_family, operators=(Resize(),))),
    "SteerBlurOperator": (FALLS, partial(on_family, operators=(Blur(1.0),))),
    "SteerCropOperator": (FALLS, partial(on_family, operators=(Crop(),))),
    "SteerJPEGOperator": (FALLS, partial(on_family, operators=(JPEG(20),))),
}
CHECK = {
    "SteerMeasurementLoss": (checks.loss, (*checks.RUN, "guider")),
    "SteerGrayOperator": (check_operator, ()),
    "SteerResizeOperator": (check_operator, ()),
    "SteerBlurOperator": (check_operator, ()),
    "SteerCropOperator": (check_operator, ()),
    "SteerJPEGOperator": (check_operator, ()),
}
USUAL = {
    "SteerMeasurementLoss": {"noise": (0.1,)},
    "SteerResizeOperator": {"width": (0, 16), "height": (0, 16)},
    "SteerBlurOperator": {"std": (0.0, 1.0), "motion": (3,), "angle": (30.0,)},
    "SteerCropOperator": {"x": (0, 8), "y": (0, 8), "width": (0, 32), "height": (0, 32)},
    "SteerJPEGOperator": {"quality": (10, 50)},
}
