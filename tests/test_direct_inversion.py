import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.direct_inversion import PinnedSource
from steer.samplers.inversion import Inversion
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.tests.closed_form import log_spaced

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW]


def recorded(law, batch=1):
    """Latents that no model would lead along: whoever ends on them was pinned there."""
    sigmas = tuple(log_spaced(9.0, 0.05, 8)) if not law.flow else (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)
    latents = tuple(torch.randn(batch, 4, 3, 3, dtype=torch.float64) for _ in sigmas)
    return Inversion(sigmas, latents, law, "SD15", from_top=False)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_deterministic_step_from_each_level_ends_at_the_next_recorded_one(law, every):
    """Also where the run takes only some of the recorded levels."""
    inversion = recorded(law)
    sigmas = [*inversion.sigmas[:-1:every], inversion.sigmas[-1]]
    latents = [inversion.latents[inversion.sigmas.index(sigma)] for sigma in sigmas]
    source = PinnedSource(inversion, sigmas, latents[0].shape)
    steps = ddim(lambda x, sigma: source.denoised(sigma, x), latents[0], sigmas, law)
    for step, latent in zip(steps, latents[1:], strict=True):
        torch.testing.assert_close(step.x, latent, rtol=0, atol=1e-12)
        assert torch.equal(source.x(step.sigma, latent), latent)


def test_one_inversion_serves_every_picture_of_the_batch():
    inversion, like = recorded(VARIANCE_EXPLODING), torch.zeros(3, 4, 3, 3)
    source = PinnedSource(inversion, inversion.sigmas, like.shape)
    for values in (source.x(9.0, like), source.denoised(9.0, like)):
        assert values.shape == like.shape and values.dtype == like.dtype and torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    "sigmas, shape, message",
    [
        ((9.0, 0.0), (1, 4, 3, 4), r"latents of \(4, 3, 3\) and latent_image of \(4, 3, 4\)"),
        ((9.0, 0.0), (3, 4, 3, 3), "2 latents and latent_image 3"),
        ((9.0, 4.321, 0.0), (2, 4, 3, 3), "4.321 is not one that the inversion recorded"),
    ],
)
def test_what_it_is_not_of_is_refused(sigmas, shape, message):
    with pytest.raises(ValueError, match=message):
        PinnedSource(recorded(VARIANCE_EXPLODING, batch=2), sigmas, shape)


def test_a_level_between_is_refused():
    inversion = recorded(VARIANCE_EXPLODING)
    source = PinnedSource(inversion, inversion.sigmas, inversion.latents[0].shape)
    with pytest.raises(ValueError, match="a sampler that stays on them"):
        source.x(5.0, inversion.latents[0])
