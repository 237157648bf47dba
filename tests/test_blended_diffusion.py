import pytest
import torch
from steer.samplers.blended_diffusion import Blend, mask_stage, shrinking_masks
from steer.samplers.ddim import ddim
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.tests.closed_form import last, log_spaced, standard_noise


def run(law, known, mask, x, sigmas, dilation=0, eta=0.0):
    blend = Blend(sigmas, law, known, mask, standard_noise(1), dilation)
    steps = ddim(lambda x, s: blend.denoise(toy, x, s), x, sigmas, law, eta, standard_noise(2))
    return blend.finish(last(steps))


def toy(x, sigma):
    return x / (1 + sigma)


@pytest.mark.parametrize("law, sigmas", [(VARIANCE_EXPLODING, log_spaced(9.0, 0.03, 12)),
                                         (RECTIFIED_FLOW, [1.0, 0.8, 0.4, 0.2, 0.0])])  # fmt: skip
def test_nothing_and_everything(law, sigmas):
    known, x = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7)
    assert torch.equal(run(law, known, torch.zeros_like(x), x, sigmas), known)
    everything = run(law, known, torch.ones_like(x), x, sigmas, eta=1.0)
    assert torch.equal(everything, last(ddim(toy, x, sigmas, law, 1.0, standard_noise(2))))


def test_the_model_sees_the_source_at_its_level():
    """Outside the mask: mean alpha x0 and std sigma at each call, drawn afresh each time."""
    law, sigmas = RECTIFIED_FLOW, [1.0, 0.7, 0.3, 0.0]
    known = torch.full((1, 1, 300, 300), 5.0)
    mask = torch.zeros_like(known)
    mask[..., :10] = 1
    seen = []

    def watch(x, sigma):
        seen.append(x[..., 10:])
        return x

    blend = Blend(sigmas, law, known, mask, standard_noise(1))
    last(ddim(lambda x, s: blend.denoise(watch, x, s), known * 0, sigmas, law))
    for x, sigma in zip(seen, sigmas, strict=False):
        assert abs(x.mean() - (1 - sigma) * 5.0) < 0.02 and abs(x.std() / sigma - 1) < 0.02
    drawn = [(x - (1 - s) * 5.0) / s for x, s in zip(seen, sigmas, strict=False)]
    assert torch.corrcoef(torch.stack([d.flatten() for d in drawn])).triu(1).abs().max() < 0.02


def test_masks_shrink_to_the_users():
    mask = torch.zeros(1, 4, 9, 11)
    mask[..., 4, 5] = 1
    masks = shrinking_masks(mask, 3)
    assert [int(m[0, 0].sum()) for m in masks] == [49, 25, 9, 1]
    assert torch.equal(masks[-1], mask)
    assert shrinking_masks(mask, 0) == [mask]
    with pytest.raises(ValueError, match="dilation"):
        shrinking_masks(mask, -1)


def test_video_masks_grow_in_space_only():
    mask = torch.zeros(1, 4, 3, 7, 7)
    mask[:, :, 1, 3, 3] = 1
    grown = shrinking_masks(mask, 1)[0]
    assert grown[:, :, 1].sum() == 4 * 9 and grown[:, :, [0, 2]].sum() == 0


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("stages", [1, 2, 5, 7, 32])
def test_stages_cover_every_mask_and_end_on_the_last(steps, stages):
    sigmas = log_spaced(10.0, 0.1, steps)
    sequence = [mask_stage(sigma, sigmas, stages) for sigma in sigmas[:-1]]
    assert sequence == sorted(sequence) and sequence[-1] == stages - 1
    if stages <= steps:
        assert set(sequence) == set(range(stages))


def test_stage_between_sigmas_and_above_them():
    sigmas = [8.0, 4.0, 2.0, 1.0, 0.0]
    assert [mask_stage(s, sigmas, 4) for s in (9.0, 8.0, 5.0, 4.0, 3.0, 1.5, 1.0, 0.5)] == [0, 0, 0, 1, 1, 2, 3, 3]


def test_soft_edge_is_the_mix_of_estimate_and_source():
    known = torch.ones(1, 1, 4, 4)
    mask = torch.full_like(known, 0.25)
    blend = Blend([1.0, 0.0], VARIANCE_EXPLODING, known, mask, standard_noise(0))
    x = last(ddim(lambda x, s: blend.denoise(lambda x, s: x * 0 + 3, x, s), known, [1.0, 0.0], VARIANCE_EXPLODING))
    torch.testing.assert_close(blend.finish(x), 0.25 * 3 + 0.75 * known)
