import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.inversion import Inversion, invert
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw
from steer.samplers.trajectory_blend import Path, TrajectoryBlend
from steer.tests.closed_form import gaussian_denoiser, last, log_spaced

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=0.7)]
COVARIANCE = 0.3 * torch.eye(6, dtype=torch.float64) + 0.2
MASK = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)


def denoiser(law, mean):
    return gaussian_denoiser(law, torch.full((6,), float(mean), dtype=torch.float64), COVARIANCE)


def inverted(law, mean=0.0, refine=0, steps=12):
    sigmas = log_spaced(9.0, 0.05, steps) if not law.flow else [1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0]
    latents = [torch.randn(2, 6, dtype=torch.float64)]
    latents += [level.x for level in invert(denoiser(law, mean), latents[0], sigmas, law, refine, 1e-11)]
    return Inversion(tuple(sigmas), tuple(reversed(latents)), law, "SD15", from_top=False)


def blended(inversion, mask, denoise, sigmas=None, eta=0.0, noise=None):
    sigmas = sigmas or list(inversion.sigmas)
    blend = TrajectoryBlend(inversion, sigmas, mask)
    x = blend.start(inversion.latents[0])
    steps = ddim(lambda x, s: blend.denoise(denoise, x, s), x, sigmas, inversion.law, eta, noise)
    return blend.finish(last(steps))


def path_of(inversion):
    return Path(inversion.sigmas, inversion.latents)


@pytest.mark.parametrize("law", LAWS)
def test_the_path_is_the_recorded_one_and_its_estimate_leads_along_it(law):
    inversion = inverted(law)
    path = path_of(inversion)
    for sigma, x in zip(inversion.sigmas, inversion.latents, strict=True):
        assert torch.equal(path.x(sigma, x), x)
    down = list(ddim(lambda x, s: path.denoised(s, x), inversion.latents[0], inversion.sigmas, law))
    for step, x in zip(down, inversion.latents[1:], strict=True):
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-12)
    assert torch.equal(path.denoised(inversion.sigmas[-2], x), inversion.latents[-1])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_between_levels_the_path_is_a_shorter_deterministic_step(law, share):
    inversion = inverted(law)
    path, (high, low) = path_of(inversion), inversion.sigmas[2:4]
    between, x = high + share * (low - high), inversion.latents[2]
    expected = law.step(x, path.denoised(high, x), high, between)
    torch.testing.assert_close(path.x(between, x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.denoised(between, x), path.denoised(high, x), rtol=0, atol=1e-11)


def test_above_the_path_its_first_line_goes_on():
    """Samplers that add noise before a step call the model above the level."""
    law, inversion = VARIANCE_EXPLODING, inverted(VARIANCE_EXPLODING)
    path, x, top = path_of(inversion), inversion.latents[0], inversion.sigmas[0]
    higher = path.x(1.2 * top, x)
    torch.testing.assert_close(law.step(higher, path.denoised(1.2 * top, x), 1.2 * top, top), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_as_published(law):
    """After each step `x = M x + (1 - M) z` with z at the level of the step's end; another mean as the new prompt."""
    inversion, edit = inverted(law), denoiser(law, 3.0)
    x = inversion.latents[0]
    for index, (sigma, after) in enumerate(zip(inversion.sigmas, inversion.sigmas[1:], strict=False)):
        x = law.step(x, edit(x, sigma), sigma, after)
        x = MASK * x + (1 - MASK) * inversion.latents[index + 1]
    torch.testing.assert_close(blended(inversion, MASK, edit), x, rtol=0, atol=1e-12)
    assert (x - inversion.latents[-1]).abs().max() > 0.3


@pytest.mark.parametrize("law", LAWS)
def test_nothing_and_everything(law):
    inversion = inverted(law, refine=20)
    assert torch.equal(blended(inversion, 0 * MASK, denoiser(law, 3.0)), inversion.latents[-1])
    back = blended(inversion, 0 * MASK + 1, denoiser(law, 0.0))
    torch.testing.assert_close(back, inversion.latents[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("part", [slice(0, None), slice(3, None), slice(2, 5)])
def test_outside_every_call_sees_the_path_and_the_end_is_exact(part, eta):
    inversion, seen = inverted(VARIANCE_EXPLODING), []
    sigmas = list(inversion.sigmas[part])

    def watch(x, sigma):
        seen.append((x[:, :3], sigma))
        return x * 0 + 2.0

    out = blended(inversion, MASK, watch, sigmas, eta, torch.randn_like)
    recorded = dict(zip(inversion.sigmas, inversion.latents, strict=True))
    assert [sigma for _, sigma in seen] == sigmas[:-1]
    assert all(torch.equal(x, recorded[sigma][:, :3]) for x, sigma in seen)
    assert torch.equal(out[:, :3], recorded[sigmas[-1]][:, :3])


@pytest.mark.parametrize("law", LAWS)
def test_a_soft_edge_is_that_share_of_the_edit(law):
    """Against two constant estimates the result is their mix, however many steps it took."""
    inversion = inverted(law)
    soft = torch.full_like(MASK, 0.25)
    inversion = Inversion(inversion.sigmas, tuple(law.alpha(s) * 5.0 + law.std(s) * torch.ones_like(MASK)
                          for s in inversion.sigmas), law, "SD15", from_top=False)  # fmt: skip
    out = blended(inversion, soft, lambda x, s: x * 0 + 1.0)
    torch.testing.assert_close(out, torch.full_like(out, 0.25 * 1.0 + 0.75 * 5.0))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: [*s[:3], *s[4:]], "leave the inversion's at"),
        (lambda s: [s[0] * 1.01, *s[1:]], "starts at sigma"),
        (lambda s: [s[0], s[1] * 0.98, *s[2:]], "leave the inversion's at"),
        (lambda s: [*s[:-1], s[-2] / 2, 0.0], "leave the inversion's at"),
        (lambda s: s[::2], "without gaps"),
    ],
)
def test_another_schedule_is_refused(change, message):
    inversion = inverted(VARIANCE_EXPLODING)
    with pytest.raises(ValueError, match=message):
        TrajectoryBlend(inversion, change(list(inversion.sigmas)), MASK)
