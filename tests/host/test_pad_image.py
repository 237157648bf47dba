"""Pad Image through the host: what a VAE makes of what is kept, and what an outpainting keeps."""

import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import encode, host_guider, noise_of, run, sigmas_of
from steer.lab.world.data import render, scene_of
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.pad_image import SteerPadImage
from steer.tests import checks

EULER = comfy.samplers.sampler_object("euler")


def picture():
    """A circle that reaches beyond the left three quarters of it."""
    return torch.from_numpy(render(scene_of("circle", "red", "white", 88, 64, 24)).copy())[None].float() / 255


def test_the_vae_keeps_more_of_what_is_given_than_beside_gray(shapes):
    """Beside the edge the latents are nearer to those of the whole picture."""
    vae, whole = shapes[2], picture()
    given = whole[:, :, :96]
    gray = torch.cat([given, torch.full((1, 128, 32, 3), 0.5)], 2)
    true, *encoded = (
        vae.encode(each)[..., :12] for each in (whole, SteerPadImage.execute(given, 0, 0, 32, 0)[0], gray)
    )
    edge, beside_gray = (float((each - true).square().mean()) for each in encoded)
    assert edge < 0.5 * beside_gray


def test_what_is_given_stays(shapes):
    model, clip, vae = shapes
    larger, mask = SteerPadImage.execute(picture()[:, :, :96], 0, 0, 32, 0).args
    latent = vae.encode(larger)
    guider = host_guider(model, encode(clip, "a red circle on a white background"), encode(clip, ""), 5.0)
    sampler = SteerLangevinSampler.execute(2, 0.5)[0]
    out = run(guider, sampler, sigmas_of(model, 3), noise_of(latent.shape), latent, mask)
    torch.testing.assert_close(out[..., :12], latent[..., :12], rtol=1e-5, atol=1e-5)
    assert (out[..., 12:] - latent[..., 12:]).abs().max() > 0.1


def test_bad_input():
    with pytest.raises(ValueError, match="SteerPadImage: left, top, right and bottom are 0, .*raise one"):
        SteerPadImage.execute(torch.rand(1, 8, 8, 3), 0, 0, 0, 0)
    with pytest.raises(ValueError, match="SteerPadImage: image has shape .*, 4"):
        SteerPadImage.execute(torch.rand(1, 8, 8, 4), 8, 0, 0, 0)


def on_family(family):
    image = torch.rand(3, 16, 24, 3)
    larger, mask = SteerPadImage.execute(image, 8, 0, 0, 16).args
    assert torch.equal(larger[:, :16, 8:], image) and mask.shape == (1, 32, 32) and not mask[:, :16, 8:].any()


def check_padded(world, given, run, output):
    larger, mask = output
    left, top, image = given["left"], given["top"], given["image"]
    height, width = image.shape[1:3]
    assert torch.equal(larger[:, top : top + height, left : left + width], image)
    checks.check_mask(mask, *larger.shape[1:3])
    assert mask.sum() == mask[0].numel() - height * width


ORACLE = {"SteerPadImage": ("works on pictures, whatever the model", on_family)}
CHECK = {"SteerPadImage": (check_padded, ())}
USUAL = {"SteerPadImage": {side: (0, 8) for side in ("left", "top", "right", "bottom")}}
