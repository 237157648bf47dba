import pytest
import torch
from steer.samplers.diffedit import contrast, draws, mask_from
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw

LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=0.7)]
SHAPE = (2, 4, 9, 12)


def region(*shape):
    """A region for each picture, of different sizes."""
    mask = torch.zeros(shape[0], *shape[2:])
    for item in range(shape[0]):
        mask[item, ..., 2 : 4 + 2 * item, 3 : 5 + 3 * item] = 1
    return mask


def planted(where, size=1.0):
    """Estimates of two prompts that differ inside a region, by what depends on x and on the channel."""

    def estimates(x, sigma):
        source = x / (1 + sigma)
        inside = where.repeat(len(x) // len(where), *[1] * (where.ndim - 1)).unsqueeze(1)
        return source, source + size * inside * (1.5 + torch.sin(3 * x))

    return estimates


def map_of(estimates, latent, law=VARIANCE_EXPLODING, samples=10, together=10, seed=0, sigma=0.6):
    return contrast(estimates, latent, sigma, law, draws(seed, samples, latent), together)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [SHAPE, (1, 16, 3, 9, 12)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_a_planted_region_is_recovered(law, shape, threshold):
    where = region(*shape)
    mask, heat = mask_from(map_of(planted(where), torch.randn(shape), law), threshold)
    assert torch.equal(mask, where)
    assert heat.min() == 0.0 and heat.max() == 1.0


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9])
def test_the_threshold_is_on_the_squared_contrast_over_three_times_its_mean(threshold):
    given = torch.rand(3, 8, 8)
    mask, heat = mask_from(given, threshold)
    for item in range(3):
        square = [float(value) ** 2 for value in given[item].flatten()]
        level = 3 * threshold * sum(square) / len(square)
        assert [value > level for value in square] == mask[item].flatten().bool().tolist()
    torch.testing.assert_close(heat > threshold, mask.bool())
    assert not mask_from(given, 1.0)[0].any()


def test_the_map_is_the_mean_difference_over_draws_and_channels():
    latent, law, sigma = torch.randn(SHAPE), RECTIFIED_FLOW, 0.4
    estimates, noises = planted(region(*SHAPE)), draws(3, 5, latent)
    difference, size = torch.zeros(2, 9, 12), torch.zeros(2)
    for noise in noises:
        source, target = estimates(law.noised(latent, sigma, noise[None]), sigma)
        difference += (target - source).abs().mean(1) / 5
        size += source.abs().mean((1, 2, 3)) / 5
    torch.testing.assert_close(contrast(estimates, latent, sigma, law, noises, 2), difference / size[:, None, None])


@pytest.mark.parametrize("negative_weight", [0.0, 2.0])
def test_guidance_makes_the_same_mask(negative_weight):
    """Guided by 7.5 with the same negative, the difference is 7.5 times as large everywhere: it cancels."""
    latent, estimates = torch.randn(SHAPE), planted(torch.rand(2, 9, 12))

    def guided(x, sigma):
        source, target = estimates(x, sigma)
        negative = negative_weight * torch.cos(x)
        return negative + 7.5 * (source - negative), negative + 7.5 * (target - negative)

    assert torch.equal(mask_from(map_of(guided, latent), 0.5)[0], mask_from(map_of(estimates, latent), 0.5)[0])


@pytest.mark.parametrize("size", [0.0, 1e-8])
def test_without_contrast_the_mask_is_empty(size):
    mask, heat = mask_from(map_of(planted(region(*SHAPE), size), torch.randn(SHAPE)), 0.5)
    assert not mask.any() and not heat.any()
    assert not mask_from(torch.zeros(1, 4, 4), 0.0)[0].any()


def test_a_uniform_contrast_has_nothing_that_stands_out():
    mask, heat = mask_from(torch.full((1, 4, 4), 0.3), 0.5)
    assert not mask.any() and heat.any()


def test_each_picture_has_its_own_mean():
    """One picture with a small and faint change, one with a large and strong one: as each alone."""
    latent, where = torch.randn(SHAPE), region(*SHAPE)
    where[1] *= 50
    together = mask_from(map_of(planted(where), latent), 0.5)
    alone = [mask_from(map_of(planted(where[i : i + 1]), latent[i : i + 1]), 0.5) for i in range(2)]
    assert torch.equal(together[0], where.clamp(max=1))
    for both, singles in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(both, torch.cat(singles))


@pytest.mark.parametrize("together", [1, 3, 7])
def test_in_parts_as_at_once(together):
    latent, estimates = torch.randn(SHAPE), planted(torch.rand(2, 9, 12))
    torch.testing.assert_close(map_of(estimates, latent, together=together), map_of(estimates, latent))


def test_all_prompts_and_pictures_see_the_same_noises():
    latent, seen = torch.randn(SHAPE), []

    def watch(x, sigma):
        seen.append((x - latent.repeat(len(x) // 2, 1, 1, 1)) / sigma)
        return x, x + 1

    map_of(watch, latent, samples=5, together=2, seed=9)
    noises = torch.cat(seen)
    assert [len(x) for x in seen] == [4, 4, 2]
    torch.testing.assert_close(noises[0::2], noises[1::2])
    torch.testing.assert_close(noises[0::2], draws(9, 5, latent))
    assert not torch.equal(draws(9, 5, latent), draws(8, 5, latent))
    assert torch.equal(draws(9, 3, latent), draws(9, 5, latent)[:3])


def test_outside_of_a_given_mask_nothing_is_found_or_counts():
    where, within = region(*SHAPE), torch.zeros(2, 9, 12)
    within[..., :6] = 0.5
    given = map_of(planted(where + 0.01), torch.randn(SHAPE))
    other = torch.where(within > 0, given, 100.0)
    mask, heat = mask_from(other, 0.5, within)
    assert not heat[within == 0].any() and torch.equal(mask[..., :6], where[..., :6])
    torch.testing.assert_close(heat[..., :6], mask_from(given[..., :6], 0.5)[1])
