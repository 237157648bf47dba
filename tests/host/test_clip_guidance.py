"""CLIP losses on the host: the towers and the VAE differentiated as they are, and what does not belong together."""

from copy import copy
from functools import cache
from types import SimpleNamespace

import comfy.clip_vision
import comfy.model_management
import comfy.samplers
import nodes
import pytest
import torch
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.lab.models import stock
from steer.lab.world.data import render, scene_of
from steer.nodes.clip_guidance import SteerCLIPImageLoss, SteerCLIPTextLoss
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.host import clip as host_clip
from steer.nodes.host import vae as host_vae
from steer.nodes.runs import clip_guidance as clip_run
from steer.samplers.clip_guidance import spherical_distance
from steer.tests import checks, oracles
from steer.tests.cases import some
from steer.tests.fuzz_inputs import PROMPT
from steer.tests.host_models import FLOW, again, relative, with_law

TEXT = "a green star"


@pytest.fixture(scope="module")
def pair():
    """(clip, clip_vision) of one small CLIP, through the host's stock loaders."""
    with torch.inference_mode():
        return stock.load_clip_pair()


def picture(shape="star", color="green", bg="white"):
    return torch.from_numpy(render(scene_of(shape, color, bg)).copy()).float()[None] / 255


def text_loss(shapes, pair, text=TEXT, cutouts=4):
    return SteerCLIPTextLoss.execute(pair[1], shapes[2], pair[0], text, cutouts)[0]


def guided(guider, loss, scale=300.0, through_model=False, mask=None):
    return SteerGradientGuider.execute(guider, loss, scale, 0.0, 1.0, through_model, mask)[0]


def euler():
    return comfy.samplers.sampler_object("euler")


def empty_guider(shapes):
    empty = encode(shapes[1], "")
    return host_guider(shapes[0], empty, empty, 1.0)


def test_the_towers_see_what_the_host_shows_them(shapes, pair):
    """Our way from a picture to its embedding is the host's, but for its rounding to 8 bits."""
    vision = pair[1]
    pictures = torch.cat([picture(), picture("heart", "red", "black")])
    expected = vision.encode_image(pictures)["image_embeds"]
    squares = torch.nn.functional.interpolate(
        pictures.movedim(-1, 1), (vision.image_size,) * 2, mode="bicubic", antialias=True
    )
    found = host_clip.embedded(vision, lambda call: call(), squares.to(vision.load_device)).cpu()
    assert (spherical_distance(found, expected) < 1e-3).all()
    latent = shapes[2].encode(pictures)
    decoded = host_vae.decoded(shapes[2], lambda call: call(), latent.to(shapes[2].device)).cpu()
    torch.testing.assert_close(decoded.clamp(0, 1).movedim(1, -1), shapes[2].decode(latent), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_the_losses(shapes, pair, monkeypatch, recompute):
    """Against finite differences of the whole way: latent format, decoder, cutouts, tower; but for the clamping."""
    monkeypatch.setattr(clip_run, "within_range", lambda pictures: pictures)
    from steer.nodes.host.gradients.model import Differentiable
    from steer.nodes.runs.gradient_guidance import gradients_of
    from steer.samplers.core import SampleNoise

    loss, latent = text_loss(shapes, pair, cutouts=2), shapes[0].model.process_latent_in(shapes[2].encode(picture()))
    made = {id(patcher): Differentiable(patcher, recompute) for patcher in loss.patchers}
    comfy.model_management.load_models_gpu([each.patcher for each in made.values()])

    def value(x, step):
        run = SimpleNamespace(known=latent, mask=None, noise=lambda stream: SampleNoise(0, stream, latent, latent))
        started = loss.start(run, shapes[0].model.latent_format, lambda patcher: made[id(patcher)])
        return gradients_of("test", [started], x, 1.0)[0] if step is None else started(x + step, 1.0).double()

    latent = (latent + 0.3 * noise_of(latent.shape, 2)).to(shapes[2].device)  # off the clamped whites
    found = value(latent, None)
    direction = found / found.norm()
    slope = float(value(latent, 1e-2 * direction) - value(latent, -1e-2 * direction)) / 2e-2
    assert slope == pytest.approx(float(found.norm()), rel=0.1)


@pytest.mark.parametrize("through_model", [True, False])
def test_one_small_step_comes_closer(shapes, pair, through_model, monkeypatch):
    """By the host's own encoding of the whole picture: the gradient points the way, through the model and without."""
    monkeypatch.setattr(
        clip_run, "cutouts",
        lambda pictures, draws, size, smallest: torch.nn.functional.interpolate(
            pictures, (size, size), mode="bicubic", antialias=True
        )[:, None],
    )  # fmt: skip
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([1.0, 0.0]), noise_of((4, 4, 16, 16))
    loss = text_loss(shapes, pair)

    def distances(scale):
        pictures = shapes[2].decode(run(guided(guider, loss, scale, through_model), euler(), sigmas, noise))
        return spherical_distance(pair[1].encode_image(pictures)["image_embeds"], loss.target)

    assert (distances(0.1) < distances(0.0)).all()


def test_each_picture_has_its_own_target(shapes, pair):
    guider, sigmas, noise = empty_guider(shapes), sigmas_of(shapes[0], 4), noise_of((2, 4, 16, 16))
    images = torch.cat([picture(), picture("heart", "red", "black")])
    both, first = (
        run(guided(guider, SteerCLIPImageLoss.execute(pair[1], shapes[2], given, 4)[0], 5.0), euler(), sigmas, noise)
        for given in (images, images[:1])
    )
    assert relative(both[:1], first[:1]) < 1e-3 and relative(both[1:], first[1:]) > 1e-2


def test_a_batch_is_its_singles_and_seeds_repeat(shapes, pair):
    guider, sigmas, noise = empty_guider(shapes), torch.tensor([2.0, 0.5, 0.0]), noise_of((2, 4, 16, 16))
    steered = guided(guider, text_loss(shapes, pair), 2.0)
    both = run(steered, euler(), sigmas, noise)
    assert again(run(steered, euler(), sigmas, noise), both)
    singles = torch.cat([run(steered, euler(), sigmas, noise[i : i + 1]) for i in range(2)])
    # rounding depends on the batch, and at a decoder's ReLUs it now and then decides where the gradient goes
    assert relative(both, singles) < 1e-3
    assert relative(run(steered, euler(), sigmas, noise, seed=4), both) > 3e-3  # other cutouts


def test_scale_0_is_bitwise_plain(shapes, pair):
    guider, sigmas, noise = empty_guider(shapes), sigmas_of(shapes[0], 3), noise_of((1, 4, 16, 16))
    plain = run(guider, euler(), sigmas, noise)
    for through_model in (True, False):
        out = run(guided(guider, text_loss(shapes, pair), 0.0, through_model), euler(), sigmas, noise)
        assert torch.equal(out, plain)


@pytest.mark.parametrize("runs", some([6, 20], 6))
def test_memory_is_where_it_was_and_plain_sampling_too(shapes, pair, runs):
    """After so many guided runs what is alive is what was after 2; the models are bitwise what they were."""
    import gc

    guider, sigmas, noise = empty_guider(shapes), sigmas_of(shapes[0], 2), noise_of((1, 4, 16, 16))
    before, shown = run(guider, euler(), sigmas, noise), shapes[2].decode(noise)
    embedded = pair[1].encode_image(picture())["image_embeds"]

    def alive():
        gc.collect()
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        return len(tensors), sum(each.numel() * each.element_size() for each in tensors)

    for index in range(runs):
        run(guided(guider, text_loss(shapes, pair, cutouts=2), 20.0, index % 2 == 0), euler(), sigmas, noise)
        if index == 1:
            after_two = alive()
    assert alive() == after_two
    assert torch.equal(run(guider, euler(), sigmas, noise), before)
    assert torch.equal(shapes[2].decode(noise), shown)
    assert torch.equal(pair[1].encode_image(picture())["image_embeds"], embedded)
    for model in (shapes[0].model, shapes[2].first_stage_model, pair[1].model):
        assert not any(getattr(module, "weight_function", None) for module in model.modules())


def test_the_mask_is_all_that_clip_sees(shapes, pair, monkeypatch):
    seen = []
    embedded = host_clip.embedded
    monkeypatch.setattr(
        host_clip, "embedded", lambda vision, tower, x: seen.append(x.detach()) or embedded(vision, tower, x)
    )
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    guider = empty_guider(shapes)
    run(guided(guider, text_loss(shapes, pair), mask=mask), euler(), torch.tensor([2.0, 0.0]), noise_of((1, 4, 16, 16)))
    (squares,) = seen
    grey = (squares - 0.5).abs().amax(1) < 1e-3
    assert 0.1 < grey.float().mean() < 0.9


def test_on_a_flow_model(shapes, pair):
    model = with_law(shapes[0], FLOW)
    guider = host_guider(model, encode(shapes[1], ""), encode(shapes[1], ""), 1.0)
    sigmas, noise = sigmas_of(model, 4), noise_of((1, 4, 16, 16))
    for through_model in (True, False):
        out = run(guided(guider, text_loss(shapes, pair), 20.0, through_model), euler(), sigmas, noise)
        assert torch.isfinite(out).all() and not torch.equal(out, run(guider, euler(), sigmas, noise))


def test_what_does_not_belong_together(shapes, pair):
    clip, vision = pair
    with pytest.raises(ValueError, match="SteerCLIPTextLoss: clip's text .* width 128 and clip_vision's 64"):
        SteerCLIPTextLoss.execute(vision, shapes[2], shapes[1], TEXT, 4)
    with pytest.raises(ValueError, match="SteerCLIPTextLoss: text is empty"):
        SteerCLIPTextLoss.execute(vision, shapes[2], clip, " ", 4)
    with pytest.raises(ValueError, match="cutouts is 0"):
        SteerCLIPTextLoss.execute(vision, shapes[2], clip, TEXT, 0)
    with pytest.raises(ValueError, match="smallest_cutout is 1.5; it needs to be from 0 to 1"):
        SteerCLIPImageLoss.execute(vision, shapes[2], picture(), 4, 1.5)
    model, rows = counted(shapes[0])
    guider = host_guider(model, encode(shapes[1], ""), encode(shapes[1], ""), 1.0)
    sigmas, noise = torch.tensor([2.0, 0.0]), noise_of((1, 4, 16, 16))
    three = SteerCLIPImageLoss.execute(vision, shapes[2], picture().repeat(3, 1, 1, 1), 4)[0]
    with pytest.raises(ValueError, match="SteerGradientGuider: the loss has 3 targets for a batch of 1"):
        run(guided(guider, three), euler(), sigmas, noise)
    other = copy(shapes[2])
    other.latent_channels = 16
    loss = SteerCLIPTextLoss.execute(vision, other, clip, TEXT, 4)[0]
    with pytest.raises(ValueError, match="SteerGradientGuider: vae has 16 latent channels and the model works on 4"):
        run(guided(guider, loss), euler(), sigmas, noise)
    assert not rows


@pytest.mark.parametrize("instead", [torch.eye, lambda width: torch.zeros(width, width)])
def test_a_text_tower_without_its_projection(shapes, pair, instead):
    """Checkpoints of SD1.x leave it out, and the host puts the identity or zeros there, of the right size."""
    clip, vision = pair
    (tower,) = (m for m in clip.cond_stage_model.modules() if type(m).__name__ == "CLIPTextModel")
    weight = tower.text_projection.weight.clone()
    tower.text_projection.weight.copy_(instead(len(weight)))
    try:
        with pytest.raises(ValueError, match="SteerCLIPTextLoss: clip has no text projection.*CLIPLoader"):
            text_loss(shapes, pair)
    finally:
        tower.text_projection.weight.copy_(weight)


def test_a_vision_model_without_text(shapes, pair):
    other = copy(pair[1])
    other.model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="SteerCLIPTextLoss: clip_vision is a Linear without a projection"):
        SteerCLIPTextLoss.execute(other, shapes[2], pair[0], TEXT, 4)


@cache
def clip_pair():
    with torch.inference_mode():
        return stock.load_clip_pair()


def closer(family, loss, target):
    """Whether one guided step brings the decoded picture closer to the target."""
    guider = oracles.guider_of(family)
    steered = SteerGradientGuider.execute(guider, loss, 30.0, 0.0, 1.0, False, None, 0.3)[0]

    def distance(guider):
        pictures = nodes.VAEDecode().decode(family.vae(), {"samples": oracles.estimate(guider, family, 0.3)})[0]
        embedded = torch.nn.functional.normalize(clip_pair()[1].encode_image(pictures)["image_embeds"], dim=-1)
        return float((embedded - torch.nn.functional.normalize(target, dim=-1)).norm(dim=-1).mean())

    return distance(steered) < distance(guider)


def clip_text_on_family(family):
    loss = SteerCLIPTextLoss.execute(clip_pair()[1], family.vae(), clip_pair()[0], "a green star", 8)[0]
    assert closer(family, loss, loss.target)


def clip_image_on_family(family):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)).square()
    loss = SteerCLIPImageLoss.execute(clip_pair()[1], family.vae(), image, 8)[0]
    assert closer(family, loss, loss.target)


ORACLE = {
    "SteerCLIPTextLoss": ("one step brings the picture closer to the text", clip_text_on_family),
    "SteerCLIPImageLoss": ("one step brings the picture closer to the other", clip_image_on_family),
}
CHECK = {
    "SteerCLIPTextLoss": (checks.loss, (*checks.RUN, "guider")),
    "SteerCLIPImageLoss": (checks.loss, (*checks.RUN, "guider")),
}
USUAL = {
    "SteerCLIPTextLoss": {"text": (PROMPT,), "cutouts": (1, 2)},
    "SteerCLIPImageLoss": {"cutouts": (1, 2)},
}
