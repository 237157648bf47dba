"""Latents down to one position: a result, or a ValueError that names the node and the size before the model runs."""

import comfy.samplers
import comfy.supported_models
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from steer.lab.comfy.random_models import tiny_model
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run
from steer.lab.models.shapes_unet.loader import UNET_CONFIG
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.null_text import SteerNullText

SIGMAS = torch.tensor([14.6, 2.0, 0.0])


@pytest.fixture(scope="module")
def models():
    """Of 32 channels, which the network's norms take one by one, and of 64, with the calls of either."""
    with torch.inference_mode():
        kind = comfy.supported_models.SD15
        return {width: counted(tiny_model(kind, {**UNET_CONFIG, "model_channels": width})) for width in (32, 64)}


def inverted(model, texts, latent):
    guider = host_guider(model, texts[0], texts[1], 1.0)
    return SteerDDIMInversion.execute(guider, SIGMAS, {"samples": latent}, 0, 1e-4, True)[2].latents


def sampled_with_ddim(model, texts, latent):
    guider = host_guider(model, texts[0], texts[1], 1.0)
    return [run(guider, SteerDDIMSampler.execute(0.0)[0], SIGMAS, noise_of(latent.shape), latent)]


def guided(model, texts, latent):
    guider = SteerCFGGuider.execute(model, texts[0], texts[1], 1.0, 0.0, 1.0, 1.0)[0]
    return [run(guider, comfy.samplers.sampler_object("euler"), SIGMAS, noise_of(latent.shape), latent)]


def masked(model, texts, latent):
    return SteerDiffEditMask.execute(model, *texts, {"samples": latent}, 0.5, 2, 0.5, 1).args


def with_null_text(model, texts, latent):
    found = SteerDDIMInversion.execute(host_guider(model, *texts, 1.0), SIGMAS, {"samples": latent}, 0, 1e-4, False)
    return [entry[0] for entry in SteerNullText.execute(model, *texts, 3.0, found[2], 1, 0.01, 0.0)[0]]


NODES = {
    "SteerDDIMInversion": inverted,
    "SteerDDIMSampler": sampled_with_ddim,
    "SteerCFGGuider": guided,
    "SteerDiffEditMask": masked,
    "SteerNullText": with_null_text,
}


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("width", [32, 64])
def test_each_size(models, shapes, node_id, width):
    model, calls = models[width]
    texts = encode(shapes[1], "a red circle"), encode(shapes[1], "a star")

    @settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(batch=st.integers(1, 2), height=st.integers(1, 5), across=st.integers(1, 5))
    @example(batch=1, height=1, across=1)
    @example(batch=1, height=2, across=1)
    @example(batch=1, height=1, across=3)
    def any_size(batch, height, across):
        calls.clear()
        latent = noise_of((batch, 4, height, across))
        if width == 32 and max(height, across) <= 2:
            with pytest.raises(ValueError, match=f"^Steer[A-Za-z]+: latent_image is {across}x{height}, too small for"):
                NODES[node_id](model, texts, latent)
            assert not calls
        else:
            assert all(torch.isfinite(each).all() for each in NODES[node_id](model, texts, latent))

    any_size()
