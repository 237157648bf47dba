import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -r requirements-dev.txt")
pytest.importorskip("transformers", reason="transformers is not installed: pip install -r requirements-dev.txt")

from steer.lab.models.shapes_unet.diffusers_bridge import SCHEDULER, load  # noqa: E402  needs what was just looked for
from steer.lab.world.data import render, scene_of  # noqa: E402
from steer.lab.world.metrics import attributes, psnr  # noqa: E402
from steer.samplers.ddim import ddim  # noqa: E402
from steer.samplers.noise_law import VARIANCE_EXPLODING  # noqa: E402

CAPTIONS = [
    "a red circle on a blue background",
    "a green square on a white background",
    "a yellow triangle on a black background",
    "a purple star on a gray background",
    "a orange heart on a blue background",
    "a pink cross on a black background",
    "a green square left of a yellow triangle on a white background",
    "a red circle above a blue square on a gray background",
]


@pytest.fixture(scope="module")
def bridge():
    return load()


def noise_of(count, seed=0):
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_pictures_show_what_the_captions_say(bridge):
    contexts = bridge.encode_text(CAPTIONS), bridge.encode_text([""] * len(CAPTIONS))
    sigmas = bridge.sigmas(20)
    *_, last = ddim(bridge.denoiser(*contexts, 5.0), sigmas[0] * noise_of(8), sigmas, VARIANCE_EXPLODING)
    pictures = bridge.decode(last.x).permute(0, 2, 3, 1)
    right = [attributes(picture, text)["all"] for picture, text in zip(pictures, CAPTIONS, strict=True)]
    assert sum(right) >= 7


def test_cfg_is_the_affine_combination_of_two_plain_calls(bridge):
    positive, negative = bridge.encode_text(CAPTIONS[:1]), bridge.encode_text([""])
    x, sigma = 5 * noise_of(1), 5.0
    plus, minus = bridge.denoiser(positive)(x, sigma), bridge.denoiser(negative)(x, sigma)
    guided = bridge.denoiser(positive, negative, 3.0)(x, sigma)
    assert torch.allclose(guided, minus + 3 * (plus - minus), atol=1e-4)
    assert torch.equal(bridge.denoiser(positive, negative, 1.0)(x, sigma), plus)


def test_autoencoder_round_trip(bridge):
    picture = torch.from_numpy(render(scene_of("star", "red", "white")).copy()).permute(2, 0, 1)[None] / 255
    latent = bridge.encode(picture)
    back = bridge.decode(latent)
    assert latent.shape == (1, 4, 16, 16) and 0.5 < latent.std() < 2
    assert psnr(picture[0].permute(1, 2, 0), back[0].permute(1, 2, 0)) > 28


def test_sigmas_and_strength(bridge):
    sigmas = bridge.sigmas(20)
    assert len(sigmas) == 21 and sigmas[-1] == 0 and sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == bridge.sigma_at(1.0) == pytest.approx(14.6146, rel=1e-4)
    assert bridge.sigma_at(0.2) < bridge.sigma_at(0.6) < sigmas[0]
    with pytest.raises(ValueError, match="steps is 0"):
        bridge.sigmas(0)
    with pytest.raises(ValueError, match="strength is 0"):
        bridge.sigma_at(0.0)


def test_words_outside_the_vocabulary_are_refused(bridge):
    with pytest.raises(ValueError, match="does not know dog"):
        bridge.encode_text(["a dog"])


def test_parts_serve_diffusers_own_pipeline(bridge):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing="linspace", set_alpha_to_one=False)
    pipeline = StableDiffusionPipeline(
        vae=bridge.vae,
        text_encoder=bridge.text_encoder,
        tokenizer=None,
        unet=bridge.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    positive, negative = bridge.encode_text(CAPTIONS[:1]), bridge.encode_text([""])
    picture = pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        guidance_scale=5.0,
        latents=noise_of(1),
        num_inference_steps=20,
        output_type="np",
    ).images[0]
    assert attributes(picture, CAPTIONS[0])["all"] == 1
