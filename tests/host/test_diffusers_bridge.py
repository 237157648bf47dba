import comfy.samplers
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -r requirements-dev.txt")
pytest.importorskip("transformers", reason="transformers is not installed: pip install -r requirements-dev.txt")

from steer.lab.comfy.runs import noise_of, sigmas_of  # noqa: E402
from steer.lab.models.shapes_unet.check import SHEET, Stock  # noqa: E402
from steer.lab.models.shapes_unet.diffusers_bridge import load  # noqa: E402  needs what was just looked for
from steer.tests.host_models import relative  # noqa: E402

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def stock():
    return Stock()


@pytest.fixture(scope="module")
def bridge():
    return load()


def hosts_text(stock, captions):
    tokens = [stock.clip.tokenize(text) for text in captions]
    return torch.cat([stock.clip.encode_from_tokens(each) for each in tokens])


def test_text(stock, bridge):
    captions = [*SHEET, ""]
    assert relative(bridge.encode_text(captions), hosts_text(stock, captions)) < TOLERANCE


@pytest.mark.parametrize("sigma", [14.6, 5.0, 1.0, 0.3, 0.05])
def test_denoise(stock, bridge, sigma):
    context, x = hosts_text(stock, SHEET[:2]), sigma * noise_of((2, 4, 16, 16))
    comfy.model_management.load_model_gpu(stock.model)
    device = stock.model.load_device
    expected = stock.model.model.apply_model(x.to(device), torch.full((2,), sigma, device=device), c_crossattn=context)
    assert relative(bridge.denoiser(context)(x, sigma), expected.cpu()) < TOLERANCE


def test_guided_run(stock, bridge):
    captions, negatives = SHEET[:2], ["", ""]
    guider = comfy.samplers.CFGGuider(stock.model)
    guider.set_conds(*([[hosts_text(stock, texts), {}]] for texts in (captions, negatives)))
    guider.set_cfg(5.0)
    noise, sigmas = noise_of((2, 4, 16, 16)), torch.tensor(bridge.sigmas(2)[:2])
    expected = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas)
    expected = stock.model.model.process_latent_in(expected.cpu())
    denoise = bridge.denoiser(bridge.encode_text(captions), bridge.encode_text(negatives), 5.0)
    first, last = sigmas.tolist()
    x = noise * (1 + first**2) ** 0.5  # how the host starts at its highest level
    assert relative(x + (last - first) * (x - denoise(x, first)) / first, expected) < TOLERANCE


def test_autoencoder(stock, bridge):
    pictures = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    latents = stock.vae.encode(pictures.movedim(1, -1))
    own = stock.model.model.process_latent_in(latents)
    assert relative(bridge.encode(pictures), own) < TOLERANCE
    assert relative(bridge.decode(own), stock.vae.decode(latents).movedim(-1, 1)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_schedule(stock, bridge, steps):
    assert relative(torch.tensor(bridge.sigmas(steps)), sigmas_of(stock.model, steps)) < 1e-6


@pytest.mark.parametrize("strength", [0.25, 0.6, 0.999])
def test_strength(stock, bridge, strength):
    sampling = stock.model.get_model_object("model_sampling")
    assert bridge.sigma_at(strength) == pytest.approx(float(sampling.percent_to_sigma(1 - strength)), rel=1e-5)
