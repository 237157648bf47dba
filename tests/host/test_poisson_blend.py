"""What the node adds to the solver; that it treats batches, masks and bad input like the stitch is tested there."""

import comfy.model_management
import pytest
import torch
from steer.nodes.poisson_blend import SteerPoissonBlend
from steer.tests import checks, oracles


def picture(batch=1, seed=0):
    return 0.3 + 0.4 * torch.rand(batch, 64, 72, 3, generator=torch.Generator().manual_seed(seed))


def mask():
    mask = torch.zeros(1, 64, 72)
    mask[:, 20:, 8:60] = 1
    return mask


def test_an_edit_of_another_brightness_gives_the_source_back():
    source = picture(2)
    shift = torch.tensor([0.1, -0.2, 0.05])
    out = SteerPoissonBlend.execute(source, source + shift, mask())[0]
    torch.testing.assert_close(out, source, rtol=0, atol=1e-6)


def test_soft_masks_count_from_one_half():
    source, edited, soft = picture(), picture(seed=1), torch.linspace(0, 1, 72).expand(1, 64, 72)
    assert torch.equal(
        SteerPoissonBlend.execute(source, edited, soft)[0],
        SteerPoissonBlend.execute(source, edited, (soft > 0.5).float())[0],
    )


def test_half_precision_pictures():
    source, edited = picture().half(), picture(seed=1).half()
    out = SteerPoissonBlend.execute(source, edited, mask())[0]
    expected = SteerPoissonBlend.execute(source.float(), edited.float(), mask())[0]
    assert out.dtype == torch.half and torch.equal(out, expected.half())


def test_an_interrupt_is_heeded_between_pictures():
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            SteerPoissonBlend.execute(picture(2), picture(2, 1), mask())
    finally:
        comfy.model_management.interrupt_current_processing(False)


def on_family(family):
    source, _, edited, mask = oracles.background(family)
    out = SteerPoissonBlend.execute(source, edited, mask)[0]
    assert torch.equal(out[:, mask[0] == 0], source[:, mask[0] == 0])
    assert out.shape == edited.shape and not torch.equal(out, source)


ORACLE = {
    "SteerPoissonBlend": ("outside the mask the source, inside the edit's gradients", on_family),
}
CHECK = {
    "SteerPoissonBlend": (checks.stitched, ()),
}
