"""Style Loss on the host: the Gram matrix of CLIP's early layers, through the VAE."""

from copy import copy
from functools import cache

import nodes
import pytest
import torch
from steer.lab.comfy.random_models import random_kl
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run
from steer.lab.models import stock
from steer.lab.world.data import render, scene_of
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host import clip as host_clip
from steer.nodes.runs import style as style_run
from steer.nodes.runs.loss_terms import gradients_of
from steer.nodes.style import SteerStyleLoss
from steer.samplers.style import gram, style_distance
from steer.tests import checks, oracles
from steer.tests.host_models import FLOW, relative, with_law
from steer.tests.oracles import EULER, started


@cache
def vision():
    with torch.inference_mode():
        return stock.load_clip_pair()[1]


def picture(shape="star", color="green", bg="white"):
    return torch.from_numpy(render(scene_of(shape, color, bg)).copy()).float()[None] / 255


def loss_of(vae, image, layer=2, cutouts=4, smallest=0.0):
    return SteerStyleLoss.execute(vision(), vae, image, layer, cutouts, smallest)[0]


def guided(guider, loss, scale=300.0, through_model=False, mask=None, iterations=1):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model, mask, 3.0, iterations)[0]


def empty_guider(shapes, model=None):
    empty = encode(shapes[1], "")
    return host_guider(model or shapes[0], empty, empty, 1.0)


def whole_style(pictures, layer):
    """The Gram matrix of whole square pictures (batch, h, w, 3)."""
    size = (vision().image_size,) * 2
    squares = torch.nn.functional.interpolate(pictures.movedim(-1, 1), size, mode="bicubic", antialias=True)
    states = host_clip.states(vision(), lambda call: call(), squares.to(vision().load_device), layer)
    return gram(states, torch.ones_like(states[..., 0])).cpu()


def test_the_states_are_the_hosts_without_the_class_token():
    pictures, size = torch.cat([picture(), picture("heart", "red", "black")]), vision().image_size
    seen = torch.nn.functional.interpolate(pictures.movedim(-1, 1), (size, size), mode="bicubic", antialias=True)
    last = len(vision().model.vision_model.encoder.layers)
    ours = host_clip.states(vision(), lambda call: call(), seen.to(vision().load_device), last - 1).cpu()
    theirs = vision().encode_image(pictures)["penultimate_hidden_states"]
    assert ours.shape[1] == theirs.shape[1] - 1 and int(ours.shape[1] ** 0.5) ** 2 == ours.shape[1]
    assert relative(ours, theirs[:, 1:]) < 1e-2  # but for its rounding to 8 bits


def test_its_own_picture_is_0(shapes):
    vae, latent = shapes[2], noise_of((1, 4, 16, 16))
    own = ((vae.first_stage_model.decode(latent) + 1.0) / 2.0).detach().movedim(1, -1).clamp(0, 1)
    model = shapes[0].model.process_latent_in(latent)
    same, other = (float(started(shapes, loss_of(vae, image), model)(model, 1.0)) for image in (own, picture()))
    assert same < 1e-6 * other


def test_the_gradient_is_the_losses(shapes, monkeypatch):
    """Against finite differences of the whole way, but for the clamping."""
    monkeypatch.setattr(style_run, "within_range", lambda pictures: pictures)
    loss, latent = loss_of(shapes[2], picture(), cutouts=2), noise_of((1, 4, 16, 16)).to(shapes[2].device)
    (slope,) = gradients_of("test", [started(shapes, loss, latent)], latent, 1.0)
    step = 1e-2 * slope / slope.norm()
    ends = [float(started(shapes, loss, latent)(latent + sign * step, 1.0)) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(slope.norm()), rel=0.1)


@pytest.mark.parametrize("through_model, iterations", [(True, 1), (False, 1), (False, 4)])
def test_one_step_comes_closer(shapes, through_model, iterations):
    """By the Gram matrix of the whole picture."""
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([1.0, 0.0]), noise_of((2, 4, 16, 16))
    image = picture("heart", "red", "black")
    steered = guided(guider, loss_of(shapes[2], image, smallest=1.0), 100.0, through_model, iterations=iterations)

    def distance(guider):
        pictures = shapes[2].decode(run(guider, EULER, sigmas, noise))
        return style_distance(whole_style(pictures, 2), whole_style(image, 2))

    assert (distance(steered) < distance(guider)).all()


def test_a_batch_with_images_of_its_own_is_its_pictures_alone(shapes):
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([1.0, 0.0]), noise_of((2, 4, 16, 16))
    images = torch.cat([picture(), picture("heart", "red", "black")])

    def out(images, noise):
        return run(guided(guider, loss_of(shapes[2], images), 30.0), EULER, sigmas, noise)

    both, alone = out(images, noise), torch.cat([out(images[i : i + 1], noise[i : i + 1]) for i in (0, 1)])
    # rounding depends on the batch, and at a decoder's ReLUs it now and then decides where the gradient goes
    assert relative(both, alone) < 1e-3 and relative(out(images[:1], noise)[1:], both[1:]) > 1e-3


def test_only_what_is_in_the_mask_counts(shapes):
    """Tokens outside have no weight: without attention, which mixes tokens, they would not matter at all."""
    latent, mask = noise_of((1, 4, 16, 16)), torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1.0
    loss = loss_of(shapes[2], picture(), layer=1, cutouts=2, smallest=1.0)
    pictures = torch.full((1, 3, 128, 128), 0.3)
    other = torch.where(mask > 0, pictures, 0.9)
    masked, whole = (
        [float(started(shapes, loss, latent, mask).judge(each)) for each in (pictures, other)] for mask in (mask, None)
    )
    assert abs(masked[0] - masked[1]) < 0.5 * abs(whole[0] - whole[1])


def test_scale_0_is_bitwise_plain_and_a_flow_model_is_steered(shapes):
    for model in (shapes[0], with_law(shapes[0], FLOW)):
        guider, sigmas, noise = empty_guider(shapes, model), torch.tensor([0.7, 0.0]), noise_of((1, 4, 16, 16))
        plain, loss = run(guider, EULER, sigmas, noise), loss_of(shapes[2], picture())
        assert torch.equal(run(guided(guider, loss, 0.0), EULER, sigmas, noise), plain)
        assert relative(run(guided(guider, loss), EULER, sigmas, noise), plain) > 1e-3


def refused(shapes, message, batch=1, **inputs):
    """Before the first model call."""
    model, rows = counted(shapes[0])
    usual = {"clip_vision": vision(), "vae": shapes[2], "image": picture(), "layer": 2, "cutouts": 2}
    with pytest.raises(ValueError, match=message):
        loss = SteerStyleLoss.execute(**usual | inputs)[0]
        run(guided(empty_guider(shapes, model), loss), EULER, torch.tensor([1.0, 0.0]), noise_of((batch, 4, 8, 8)))
    assert not rows


def test_bad_input(shapes):
    layers = len(vision().model.vision_model.encoder.layers)
    refused(shapes, f"SteerStyleLoss: layer is {layers + 1} and clip_vision has {layers} layers", layer=layers + 1)
    refused(shapes, "SteerStyleLoss: layer is 0", layer=0)
    refused(shapes, "SteerStyleLoss: cutouts is 0", cutouts=0)
    refused(shapes, "SteerStyleLoss: image has shape .*split an alpha channel off", image=torch.rand(1, 8, 8, 4))
    refused(shapes, "SteerStyleLoss: image has shape", image=torch.rand(1, 8, 8, 1))
    refused(shapes, "SteerGradientGuider: the loss has 3 of image for a batch of 2", 2, image=torch.rand(3, 8, 8, 3))
    other = copy(vision())
    other.model = torch.nn.Linear(2, 2)
    refused(shapes, "SteerStyleLoss: clip_vision is a Linear whose layers cannot be read", clip_vision=other)
    vae = random_kl()
    vae.latent_channels = 16
    refused(shapes, "SteerGradientGuider: vae has 16 latent channels and the model works on 4", vae=vae)


def on_family(family):
    guider, image = oracles.guider_of(family), picture("heart", "red", "black")
    loss = loss_of(family.vae(), image, cutouts=8, smallest=1.0)
    steered = SteerGradientGuider.execute(guider, loss, 30.0, 0.0, 1.0, False, None, 0.3)[0]

    def distance(guider):
        pictures = nodes.VAEDecode().decode(family.vae(), {"samples": oracles.estimate(guider, family, 0.3)})[0]
        return float(style_distance(whole_style(pictures, 2), whole_style(image, 2)).mean())

    assert distance(steered) < distance(guider)


ORACLE = {"SteerStyleLoss": ("one step brings the style closer to the other picture's", on_family)}
CHECK = {"SteerStyleLoss": (checks.loss, (*checks.RUN, "guider"))}
USUAL = {"SteerStyleLoss": {"layer": (1, 2), "cutouts": (1, 2)}}
