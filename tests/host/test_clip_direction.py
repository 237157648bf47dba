"""CLIP Direction Loss on the host: the change of a picture beside the change of a text."""

from copy import copy
from functools import cache

import nodes
import pytest
import torch
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run
from steer.lab.models import stock
from steer.lab.world.data import render, scene_of
from steer.nodes.clip_direction import SteerCLIPDirectionLoss
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.runs import clip_direction as direction_run
from steer.nodes.runs.loss_terms import gradients_of
from steer.samplers.clip_direction import change, direction_distance
from steer.tests import checks, oracles
from steer.tests.fuzz_inputs import PROMPT, TARGET
from steer.tests.host_models import FLOW, relative, with_law
from steer.tests.oracles import EULER, started

SOURCE_TEXT, TARGET_TEXT = "a green star on a white background", "a red star on a white background"


@cache
def pair():
    with torch.inference_mode():
        return stock.load_clip_pair()


def picture(shape="star", color="green", bg="white"):
    return torch.from_numpy(render(scene_of(shape, color, bg)).copy()).float()[None] / 255


def loss_of(vae, image=None, texts=(SOURCE_TEXT, TARGET_TEXT), cutouts=4, smallest=0.9):
    clip, vision = pair()
    image = picture() if image is None else image
    return SteerCLIPDirectionLoss.execute(vision, vae, clip, image, *texts, cutouts, smallest)[0]


def guided(guider, loss, scale=100.0, through_model=False, mask=None, max_change=3.0):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model, mask, max_change)[0]


def empty_guider(shapes, model=None):
    empty = encode(shapes[1], "")
    return host_guider(model or shapes[0], empty, empty, 1.0)


def judged(shapes, loss, image):
    latent = noise_of((len(image), 4, 16, 16))
    return started(shapes, loss, latent).judge(image.movedim(-1, 1).to(shapes[2].device))


def test_along_less_than_across_less_than_against(shapes):
    """By the lab's own CLIP, of pictures that are what the texts say."""
    loss = loss_of(shapes[2])
    along, still, against = (
        float(judged(shapes, each, image))
        for each, image in (
            (loss, picture(color="red")),
            (loss, picture()),
            (loss_of(shapes[2], picture(color="red")), picture()),
        )
    )
    assert along < 0.6 and abs(still - 1.0) < 0.02 and against > 1.4


def test_it_is_finite_where_nothing_has_changed(shapes):
    vae, latent = shapes[2], noise_of((1, 4, 16, 16))
    own = ((vae.first_stage_model.decode(latent) + 1.0) / 2.0).detach().movedim(1, -1)
    model = shapes[0].model.process_latent_in(latent)
    loss = loss_of(vae, own)
    (slope,) = gradients_of("test", [started(shapes, loss, model)], model, 1.0)
    assert float(started(shapes, loss, model)(model, 1.0)) == pytest.approx(1.0, abs=0.1)
    assert torch.isfinite(slope).all() and slope.any()


def test_the_gradient_is_the_losses(shapes, monkeypatch):
    """Against finite differences of the whole way, but for the clamping."""
    monkeypatch.setattr(direction_run, "within_range", lambda pictures: pictures)
    loss, latent = loss_of(shapes[2], cutouts=2), noise_of((1, 4, 16, 16)).to(shapes[2].device)
    (slope,) = gradients_of("test", [started(shapes, loss, latent)], latent, 1.0)
    step = 1e-2 * slope / slope.norm()
    ends = [float(started(shapes, loss, latent)(latent + sign * step, 1.0)) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(slope.norm()), rel=0.1)


def whole(pictures):
    return pair()[1].encode_image(pictures)["image_embeds"].float().cpu()


@pytest.mark.parametrize("through_model", [True, False])
def test_one_step_comes_closer(shapes, through_model):
    """By the host's own encoding of the whole pictures."""
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([1.0, 0.0]), noise_of((2, 4, 16, 16))
    loss = loss_of(shapes[2], smallest=1.0)

    def distance(guider):
        pictures = shapes[2].decode(run(guider, EULER, sigmas, noise))
        return direction_distance(change(whole(picture()), whole(pictures)), loss.wanted)

    assert (distance(guided(guider, loss, 1.0, through_model)) < distance(guider)).all()


def test_a_batch_with_images_of_its_own_is_its_pictures_alone(shapes):
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([1.0, 0.0]), noise_of((2, 4, 16, 16))
    images = torch.cat([picture(), picture("heart", "blue", "black")])

    def out(images, noise):
        return run(guided(guider, loss_of(shapes[2], images), 5.0), EULER, sigmas, noise)

    both, alone = out(images, noise), torch.cat([out(images[i : i + 1], noise[i : i + 1]) for i in (0, 1)])
    # rounding depends on the batch, and at a decoder's ReLUs it now and then decides where the gradient goes
    assert relative(both, alone) < 1e-3 and relative(out(images[:1], noise)[1:], both[1:]) > 1e-3


def test_scale_0_is_bitwise_plain_and_a_flow_model_is_steered(shapes):
    for model in (shapes[0], with_law(shapes[0], FLOW)):
        guider, sigmas, noise = empty_guider(shapes, model), torch.tensor([0.7, 0.0]), noise_of((1, 4, 16, 16))
        plain, loss = run(guider, EULER, sigmas, noise), loss_of(shapes[2])
        assert torch.equal(run(guided(guider, loss, 0.0), EULER, sigmas, noise), plain)
        assert relative(run(guided(guider, loss), EULER, sigmas, noise), plain) > 1e-3


def test_what_vae_encode_cuts_off_is_cut_off(shapes):
    loss, larger = loss_of(shapes[2]), torch.nn.functional.pad(picture().movedim(-1, 1), (2, 3, 1, 2), value=0.3)
    cut = loss_of(shapes[2], larger.movedim(1, -1))
    assert torch.equal(judged(shapes, cut, picture(color="red")), judged(shapes, loss, picture(color="red")))


def refused(shapes, message, batch=1, **inputs):
    """Before the first model call."""
    model, rows = counted(shapes[0])
    usual = {"clip_vision": pair()[1], "vae": shapes[2], "clip": pair()[0], "image": picture(), "cutouts": 2,
             "source_text": SOURCE_TEXT, "target_text": TARGET_TEXT}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        loss = SteerCLIPDirectionLoss.execute(**usual | inputs)[0]
        run(guided(empty_guider(shapes, model), loss), EULER, torch.tensor([1.0, 0.0]), noise_of((batch, 4, 16, 16)))
    assert not rows


def test_bad_input(shapes):
    name = "SteerCLIPDirectionLoss"
    refused(shapes, f"{name}: source_text and target_text are alike", target_text=f" {SOURCE_TEXT}\n")
    refused(shapes, f"{name}: source_text and target_text are one to CLIP", target_text=SOURCE_TEXT.upper())
    refused(shapes, f"{name}: source_text is empty", source_text=" ")
    refused(shapes, f"{name}: target_text is empty", target_text="")
    refused(shapes, f"{name}: cutouts is 0", cutouts=0)
    refused(shapes, f"{name}: image has shape .*split an alpha channel off", image=torch.rand(1, 8, 8, 4))
    refused(shapes, f"{name}: image has shape", image=torch.rand(1, 8, 8, 1))
    refused(shapes, f"{name}: clip's text .* width 128 and clip_vision's 64", clip=shapes[1])
    refused(shapes, "SteerGradientGuider: image is 64x64 and the picture of latent_image 128x128; scale or crop",
            image=torch.rand(1, 64, 64, 3))  # fmt: skip
    refused(shapes, "SteerGradientGuider: the loss has 3 of image for a batch of 2", 2,
            image=picture().repeat(3, 1, 1, 1))  # fmt: skip
    other = copy(shapes[2])
    other.latent_channels = 16
    refused(shapes, "SteerGradientGuider: vae has 16 latent channels and the model works on 4", vae=other)


def test_texts_are_checked_before_the_queue():
    checked = SteerCLIPDirectionLoss.validate_inputs
    assert checked(SOURCE_TEXT, TARGET_TEXT) is True and checked(None, TARGET_TEXT) is True
    assert "are alike" in checked("a star", "a  star") and "target_text is empty" in checked("a star", "")


def on_family(family):
    """One step from a picture of its own: the whole picture's change comes closer to the texts'."""
    guider, vae = oracles.guider_of(family), family.vae()

    def pictures(guider):
        return nodes.VAEDecode().decode(vae, {"samples": oracles.estimate(guider, family, 0.3)})[0]

    before = pictures(guider)
    loss = loss_of(vae, 0.9 * before[:1] + 0.05, cutouts=8, smallest=1.0)

    def distance(guider):
        return float(direction_distance(change(whole(loss.image), whole(pictures(guider))), loss.wanted).mean())

    assert distance(guided(guider, loss, 30.0, max_change=0.3)) < distance(guider)


ORACLE = {"SteerCLIPDirectionLoss": ("one step brings the picture's change closer to the texts'", on_family)}
CHECK = {"SteerCLIPDirectionLoss": (checks.loss, (*checks.RUN, "guider"))}
USUAL = {"SteerCLIPDirectionLoss": {"source_text": (PROMPT,), "target_text": (TARGET,), "cutouts": (1, 2)}}
