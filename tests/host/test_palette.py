"""Palette Loss on the host: through the VAE, the colours of a picture wherever they are."""

import pytest
import torch
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import counted, host_guider, noise_of, run
from steer.lab.world.data import render, scene_of
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.palette import SteerPaletteLoss
from steer.nodes.runs.loss_terms import gradients_of
from steer.samplers.palette import sliced_wasserstein
from steer.tests import checks, oracles
from steer.tests.host_models import EPS, FLOW, V, closed_form, mean_conditioning, relative
from steer.tests.oracles import EULER, started

PAIRS = (("heart", "red", "black"), ("star", "yellow", "blue"))


def pictures(*scenes):
    return torch.stack([torch.from_numpy(render(scene_of(*scene)).copy()).float() / 255 for scene in scenes])


def loss_of(vae, image, directions=64):
    return SteerPaletteLoss.execute(vae, image, directions)[0]


def guided(guider, loss, scale=4.0, mask=None, iterations=5):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, False, mask, 1000.0, iterations)[0]


def known_guider(shapes, law, variance=1.0):
    return host_guider(closed_form(shapes[0], law, variance), mean_conditioning(0.1), mean_conditioning(0.1), 1.0)


def distance(vae, latent, image):
    """Each picture's, by directions of its own."""
    pixels, wanted = (each.flatten(1, 2) for each in (vae.decode(latent), image))
    directions = noise_of((1, 500, 3), 9).expand(len(pixels), -1, -1)
    return sliced_wasserstein(pixels, wanted, directions)


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("law", [EPS, V, FLOW])
def test_one_step_comes_closer(shapes, law, iterations):
    guider, vae, x, image = known_guider(shapes, law), shapes[2], noise_of((2, 4, 8, 8)), pictures(*PAIRS)
    sigmas = torch.tensor([0.7, 0.0])
    plain, steered = (run(each, EULER, sigmas, x) for each in (guider, guided(guider, loss_of(vae, image), 1.0,
                                                                             iterations=iterations)))  # fmt: skip
    assert (distance(vae, steered, image) < 0.9 * distance(vae, plain, image)).all()


def test_the_gradient_is_the_losses(shapes):
    """Against finite differences of the whole way: latent format, decoder, sorting."""
    loss, latent = loss_of(shapes[2], pictures(PAIRS[0])), noise_of((1, 4, 8, 8)).to(shapes[2].device)
    (slope,) = gradients_of("test", [started(shapes, loss, latent)], latent, 1.0)
    step = 1e-2 * slope / slope.norm()
    ends = [float(started(shapes, loss, latent)(latent + sign * step, 1.0)) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(slope.norm()), rel=0.05)


def test_its_own_picture_is_0_and_places_do_not_matter(shapes):
    vae, latent = shapes[2], noise_of((1, 4, 8, 8))
    image = ((vae.first_stage_model.decode(latent) + 1.0) / 2.0).detach().movedim(1, -1)
    model = shapes[0].model.process_latent_in(latent)
    for same in (image, image.flip(1, 2), image.transpose(1, 2)):
        value = started(shapes, loss_of(vae, same), model)(model, 1.0)
        assert float(value) < 1e-3 < float(started(shapes, loss_of(vae, 0.5 * same), model)(model, 1.0))


def test_the_mask_is_all_that_counts_and_all_that_moves(shapes):
    """Outside it may be of any colours, and stays what it is."""
    guider, vae, x, image = known_guider(shapes, EPS), shapes[2], noise_of((1, 4, 8, 8)), pictures(PAIRS[0])
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1.0
    others = [torch.where(mask[:, None] > 0, 0.3, outside).expand(1, 3, 64, 64) for outside in (0.0, 0.9)]
    values = [float(started(shapes, loss_of(vae, image), x, mask[:, None]).judge(each)) for each in others]
    assert values[0] == values[1]
    plain, steered = (run(each, EULER, torch.tensor([0.7, 0.0]), x) for each in
                      (guider, guided(guider, loss_of(vae, image), mask=mask)))  # fmt: skip
    assert torch.equal(steered[..., 4:], plain[..., 4:]) and not torch.equal(steered, plain)


def test_a_batch_with_images_of_its_own_is_its_pictures_alone(shapes):
    guider, sampler, vae = known_guider(shapes, EPS), SteerDDIMSampler.execute(1.0)[0], shapes[2]
    sigmas, x, images = torch.tensor([1.0, 0.5, 0.0]), noise_of((2, 4, 8, 8)), pictures(*PAIRS)

    def out(images, x):
        return run(guided(guider, loss_of(vae, images), iterations=1), sampler, sigmas, x)

    alone = torch.cat([out(images[i : i + 1], x[i : i + 1]) for i in (0, 1)])
    both = out(images, x)
    assert relative(both, alone) < 1e-3 and relative(out(images[:1], x)[1:], both[1:]) > 1e-2


def test_scale_0_is_bitwise_plain(shapes):
    guider, sigmas, x = known_guider(shapes, EPS), torch.tensor([0.7, 0.0]), noise_of((1, 4, 8, 8))
    loss = loss_of(shapes[2], pictures(PAIRS[0]))
    assert torch.equal(run(guided(guider, loss, 0.0), EULER, sigmas, x), run(guider, EULER, sigmas, x))


def refused(shapes, message, latent=(1, 4, 8, 8), **inputs):
    """Before the first model call."""
    model, rows = counted(closed_form(shapes[0], EPS))
    guider = host_guider(model, mean_conditioning(0), mean_conditioning(0), 1.0)
    with pytest.raises(ValueError, match=message):
        loss = SteerPaletteLoss.execute(
            **{"vae": shapes[2], "image": pictures(PAIRS[0]), "directions": 8} | inputs
        )  # fmt: skip
        run(guided(guider, loss[0]), EULER, torch.tensor([1.0, 0.0]), noise_of(latent))
    assert not rows


def test_bad_input(shapes):
    refused(shapes, "SteerPaletteLoss: image has shape .*3.*split an alpha channel off", image=torch.rand(1, 8, 8, 4))
    refused(shapes, "SteerPaletteLoss: image has shape", image=torch.rand(1, 8, 8, 1))
    refused(shapes, "SteerPaletteLoss: image has shape", image=torch.rand(8, 8, 3))
    refused(shapes, "SteerPaletteLoss: image holds NaN", image=torch.full((1, 8, 8, 3), float("nan")))
    refused(shapes, "SteerPaletteLoss: directions is 0", directions=0)
    refused(shapes, "SteerGradientGuider: the loss has 3 of image for a batch of 2", (2, 4, 8, 8),
            image=torch.rand(3, 8, 8, 3))  # fmt: skip
    other = random_kl()
    other.latent_channels = 16
    refused(shapes, "SteerGradientGuider: vae has 16 latent channels and the model works on 4", vae=other)


def on_family(family):
    guider, vae, sigmas = oracles.guider_of(family), family.vae(), oracles.from_level(family, 1)
    given = oracles.EULER, sigmas, oracles.noise_for(family), family.picture()
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.2, 0.5])
    loss = loss_of(vae, image)

    def far(latent):
        pixels = vae.decode(latent).flatten(0, -4).flatten(1, 2)
        return float(sliced_wasserstein(pixels, image.flatten(1, 2), noise_of((len(pixels), 100, 3), 9)).mean())

    plain = run(guider, *given)
    assert torch.equal(run(guided(guider, loss, 0.0), *given), plain)
    assert far(run(guided(guider, loss), *given)) < 0.99 * far(plain)


ORACLE = {"SteerPaletteLoss": ("one solved step brings the colours closer; scale 0 is plain bit for bit", on_family)}
CHECK = {"SteerPaletteLoss": (checks.loss, (*checks.RUN, "guider"))}
USUAL = {"SteerPaletteLoss": {"directions": (8,)}}
