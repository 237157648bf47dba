"""Clips: what is padded, which latent frame stands for which frames, and new frames after and between given ones."""

import pytest
import torch
from steer.pictures.frames import padded
from steer.samplers.blended_diffusion import Blend
from steer.samplers.ddim import ddim
from steer.samplers.langevin import langevin
from steer.samplers.masks import for_latents, of_clip_frames, of_latent_frames
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.repaint import repaint
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced, standard_noise


def clip(count, first=0):
    """Frames that say which they are."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 3)


@pytest.mark.parametrize(
    "before, after, following, shown, new",
    [
        (0, 0, 0, [0, 1, 2], [0, 0, 0]),
        (0, 2, 0, [0, 1, 2, 2, 2], [0, 0, 0, 1, 1]),
        (2, 1, 0, [0, 0, 0, 1, 2, 2], [1, 1, 0, 0, 0, 1]),
        (0, 3, 2, [0, 1, 2, 2, 2, 10, 10, 11], [0, 0, 0, 1, 1, 1, 0, 0]),
        (1, 2, 1, [0, 0, 1, 2, 2, 10, 10], [1, 0, 0, 0, 1, 1, 0]),
        (0, 0, 2, [0, 1, 2, 10, 11], [0, 0, 0, 0, 0]),
    ],
)
def test_new_frames_show_the_nearest_that_is_there(before, after, following, shown, new):
    frames, mask = padded(clip(3), before, after, clip(following, 10) if following else None)
    assert frames[:, 0, 0, 0].tolist() == shown and frames.shape[1:] == (2, 3, 3)
    assert mask[:, 0, 0].tolist() == new and mask.shape == (len(shown), 2, 3)


@pytest.mark.parametrize("ratio, latents", [(4, 3), (8, 2), (4, 1), (6, 5), (1, 4)])
def test_a_latent_frame_is_kept_only_if_all_its_frames_are(ratio, latents):
    count = 1 + ratio * (latents - 1)
    holds = [[0], *(range(1 + ratio * k, 1 + ratio * (k + 1)) for k in range(latents - 1))]
    for first in range(count):
        for after in range(first + 1, count + 1):
            mask = torch.zeros(count, 1, 1)
            mask[first:after] = 1
            expected = [float(any(first <= frame < after for frame in frames)) for frames in holds]
            made = of_latent_frames(mask, latents)
            assert made[:, 0, 0].tolist() == expected
            back = of_clip_frames(made, ratio)
            assert back.shape == mask.shape and (back >= mask).all()
            assert torch.equal(of_latent_frames(back, latents), made)


def test_it_is_what_samplers_make_of_masks_of_each_frame():
    mask = torch.rand(9, 4, 5)
    assert torch.equal(for_latents(mask, (1, 4, 3, 4, 5))[0, 0], of_latent_frames(mask, 3))


LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW]
RHO, FRAMES = 0.9, 5
STEPS = 20
FIRST, LAST = 1.5, -1.0  # what is given
AR1 = RHO ** (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)[None]).abs().double()
GIVEN = {"continuation": [0], "bridge": [0, FRAMES - 1]}


def sigmas_of(law):
    levels = log_spaced(14.6, 0.03, STEPS)
    return levels if not law.flow else [1.0, *(level / (1 + level) for level in levels[1:])]


def denoiser(law):
    """For clips (batch, 1, FRAMES, 1, 1) whose frames are normal, with a correlation of RHO from each to the next."""
    flat = gaussian_denoiser(law, torch.zeros(FRAMES).double(), AR1)
    return lambda x, sigma: flat(x.flatten(1), sigma).view(x.shape)


def new_frames(law, method, given, count=1500):
    """The mean of each new frame, and what it is in truth: E[x | the given frames]."""
    known = torch.zeros(count, 1, FRAMES, 1, 1, dtype=torch.float64)
    known[:, :, 0], known[:, :, -1] = FIRST, LAST
    mask = torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    mask[:, :, given] = 0
    sigmas, noise = sigmas_of(law), (standard_noise(1), standard_noise(2))
    x = law.noised(known * (1 - mask), sigmas[0], standard_noise(0)(known))
    result = METHODS[method](denoiser(law), x, sigmas, law, known, mask, *noise)
    assert torch.equal(result[:, :, given], known[:, :, given])
    new = [frame for frame in range(FRAMES) if frame not in given]
    truth = AR1[new][:, given] @ torch.linalg.inv(AR1[given][:, given]) @ known[0, 0, given, 0, 0]
    return result[:, 0, new, 0, 0].mean(0), truth


def blended(denoise, x, sigmas, law, known, mask, noise, known_noise):
    blend = Blend(sigmas, law, known, mask, known_noise)
    return blend.finish(last(ddim(lambda x, sigma: blend.denoise(denoise, x, sigma), x, sigmas, law, 0.0, noise)))


METHODS = {
    "masked": lambda *given: last(langevin(*given, inner=1)),
    "blended": blended,
    "repaint": lambda *given: last(repaint(*given, resamples=4, jump_length=4)),
    "langevin": lambda *given: last(langevin(*given, inner=5)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("given", GIVEN)
def test_resampling_comes_nearer_to_the_mean_of_new_frames(law, given):
    """One pass lets what is given move new frames too little; in truth they are RHO^k times the last one."""
    errors = {}
    for method in METHODS:
        mean, truth = new_frames(law, method, GIVEN[given])
        errors[method] = float((mean - truth).abs().max())
    if given == "continuation":
        torch.testing.assert_close(truth, FIRST * RHO ** torch.arange(1, FRAMES).double())
    assert errors["langevin"] < 0.1 < errors["repaint"] < 0.5 * errors["masked"]
    assert errors["masked"] == pytest.approx(errors["blended"], abs=0.02) and errors["masked"] > 0.4


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("method", METHODS)
def test_all_new_is_plain_sampling(law, method):
    """Bit for bit, whatever the clip held: one pass, without fresh noise."""
    once = {
        "repaint": lambda *given: last(repaint(*given, resamples=1, eta=0.0)),
        "langevin": lambda *given: last(langevin(*given, inner=1)),
    }
    known, sigmas = torch.randn(3, 1, FRAMES, 1, 1, dtype=torch.float64), sigmas_of(law)
    x, mask = law.std(sigmas[0]) * torch.randn_like(known), torch.ones(1, 1, FRAMES, 1, 1, dtype=torch.float64)
    noise = standard_noise(1), standard_noise(2)
    result = (METHODS | once)[method](denoiser(law), x, sigmas, law, known, mask, *noise)
    assert torch.equal(result, last(ddim(denoiser(law), x, sigmas, law, 0.0, noise[0])))
