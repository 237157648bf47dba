import pytest
import torch
from steer.samplers.masks import check_mask, composite, dilate, keep


@pytest.mark.parametrize(
    "mask, word", [(torch.zeros(1, 4), "empty"), (torch.tensor([0.0, 1.5]), "from 0"),
                   (torch.tensor([-0.2, 1.0]), "from 0"), (torch.tensor([1.0, float("nan")]), "0 to|nan")]
)  # fmt: skip
def test_bad_masks_are_refused(mask, word):
    with pytest.raises(ValueError, match=word):
        check_mask(mask)


def test_good_masks_pass():
    check_mask(torch.tensor([0.0, 0.3, 1.0]))
    check_mask(torch.ones(2, 2))


def test_where_nothing_is_generated_the_source_is_exact_even_beside_nan():
    known, mask = torch.randn(2, 3), torch.tensor([[0.0, 1.0, 0.5]])
    denoised = torch.tensor([[float("nan"), 2.0, 4.0]]).expand(2, 3)
    mixed = composite(denoised, known, mask)
    assert torch.equal(mixed[:, 0], known[:, 0]) and torch.equal(mixed[:, 1], denoised[:, 1])
    torch.testing.assert_close(mixed[:, 2], 2.0 + 0.5 * known[:, 2])
    assert torch.equal(keep(denoised, known, mask)[:, 0], known[:, 0])


def test_dilation_is_a_square():
    mask = torch.zeros(1, 1, 9, 9)
    mask[..., 4, 4] = 0.5
    grown = dilate(mask, 2)
    assert grown.sum() == 25 * 0.5 and torch.equal(grown[..., 2:7, 2:7], torch.full((1, 1, 5, 5), 0.5))
