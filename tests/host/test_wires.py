"""What other packs put on wires is taken as what the host makes: it is known by what it has, not by its class."""

from collections import UserDict
from copy import copy

import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import Noise, encode, host_guider, noise_of, run
from steer.lab.models import stock
from steer.nodes import METHODS
from steer.nodes.attention_maps import SteerCaptureAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.clip_guidance import SteerCLIPImageLoss
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.node import KINDS
from steer.nodes.reconstruct import SteerReconstructDecoder, SteerReconstructLatent

SIGMAS = torch.tensor([14.6, 2.0, 0.0])
NOISE = noise_of((1, 4, 16, 16))


class OtherModel(comfy.model_patcher.ModelPatcher):
    """As GGUF's."""


class OtherList(list):
    pass


class OtherGuider:
    """It samples on a model, and is no guider of the host's."""

    def __init__(self, guider):
        self.model_patcher, self._guider = guider.model_patcher, guider

    def sample(self, *args, **kwargs):
        return self._guider.sample(*args, **kwargs)


class OtherSampler:
    """It samples, and is no sampler of the host's."""

    def __init__(self, sampler):
        self._sampler = sampler

    def sample(self, *args, **kwargs):
        return self._sampler.sample(*args, **kwargs)


@pytest.fixture
def parts(shapes):
    model, clip, _ = shapes
    return model, encode(clip, "a red circle"), encode(clip, "")


def test_every_type_of_input_is_looked_at():
    assert {item.io_type for method in METHODS for node in method.NODES for item in node.GET_SCHEMA().inputs} == {
        *KINDS
    }


def test_models_and_conditionings(parts):
    model, positive, negative = parts
    euler = comfy.samplers.sampler_object("euler")
    expected = run(host_guider(*parts, 3.0), euler, SIGMAS, NOISE)
    other = model.clone()
    other.__class__ = OtherModel
    text = OtherList((tensor, UserDict(options)) for tensor, options in positive)
    for conds in ((text, negative), (tuple(map(tuple, positive)), tuple(negative))):
        guider = SteerCFGGuider.execute(other, *conds, 3.0, 0.0, 1.0, 1.0)[0]
        assert torch.equal(run(guider, euler, SIGMAS, NOISE), expected)


def test_guiders_and_latents(parts):
    guider, latent = host_guider(*parts, 1.0), {"samples": NOISE}
    expected = SteerDDIMInversion.execute(guider, SIGMAS, latent, 0, 1e-4, False)[2].latents
    found = SteerDDIMInversion.execute(OtherGuider(guider), SIGMAS, UserDict(latent), 0, 1e-4, False)[2].latents
    assert all(map(torch.equal, found, expected))


def test_samplers_and_noises(parts):
    guider, euler = host_guider(*parts, 3.0), comfy.samplers.sampler_object("euler")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:9, 4:9] = 1.0
    blended = [SteerBlendedSampler.execute(sampler, 0)[0] for sampler in (euler, OtherSampler(euler))]
    one, other = (run(guider, sampler, SIGMAS, NOISE, NOISE, mask) for sampler in blended)
    assert torch.equal(one, other)
    latent = {"samples": torch.zeros_like(NOISE)}
    captured = SteerCaptureAttention.execute(Noise(NOISE), guider, OtherSampler(euler), SIGMAS, latent)[0]["samples"]
    torch.testing.assert_close(captured, run(guider, euler, SIGMAS, NOISE), rtol=0, atol=1e-4)


def test_losses(parts):
    class OtherLoss:
        noisy, patchers = True, ()

        def memory(self, shape):
            return 0.0

        def start(self, run, latent_format, differentiable):
            return lambda x, sigma: x.square().mean((1, 2, 3))

    guider, euler = host_guider(*parts, 3.0), comfy.samplers.sampler_object("euler")
    guided = SteerGradientGuider.execute(guider, OtherLoss(), 100.0, 0.0, 1.0, False)[0]
    assert not torch.equal(run(guided, euler, SIGMAS, NOISE), run(guider, euler, SIGMAS, NOISE))


def test_a_vae_without_weights(shapes):
    """As the host gives it for a checkpoint that has none."""
    vae = copy(shapes[2])
    vae.first_stage_model = None
    del vae.patcher
    picture, mask = torch.rand(1, 128, 128, 3), torch.ones(1, 128, 128)
    for node in (SteerReconstructLatent, SteerReconstructDecoder):
        with pytest.raises(ValueError, match=f"^{node.__name__}: vae is .* it needs a VAE with its weights"):
            node.execute(vae, picture, {"samples": NOISE}, mask, 1, 0.1)
    with pytest.raises(ValueError, match="^SteerCLIPImageLoss: vae is .* it needs a VAE with its weights"):
        SteerCLIPImageLoss.execute(stock.load_clip_pair()[1], vae, picture, 4)
