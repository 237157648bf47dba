import copy

import pytest
import torch
from steer.samplers.reconstruct import preservation_loss, reconstruct
from torch.nn.functional import mse_loss

LATENT = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(0))
SOURCE = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(1, 1, 12, 14)
MASK[..., 3:9, 2:8] = 1
MASK[..., 9, 2:8] = 0.5


def small_decoder():
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(4, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Upsample(scale_factor=2),
        torch.nn.Conv2d(16, 3, 3, padding=1),
    )  # fmt: skip


def fitted(decoder, latent, parameters, source, steps=20, rate=1e-2):
    return list(reconstruct(lambda: decoder(latent), lambda: parameters, source, MASK, steps, rate))


def published(decoder, latent, parameters, source, steps, rate):
    """The authors' loop with torch's Adam: the last picture."""
    optimizer, foreground = torch.optim.Adam(parameters, lr=rate), decoder(latent).detach()
    for _ in range(steps):
        picture = decoder(latent)
        loss = mse_loss(foreground * MASK, picture * MASK)
        loss = loss + 100 * mse_loss(source * (1 - MASK), picture * (1 - MASK))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder(latent).detach()


def test_the_loss_by_hand():
    picture, foreground, source = (torch.full((1, 3, 2, 2), value) for value in (0.5, 0.1, 0.9))
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    # means over all four pixels: (0.4^2 + 0.2^2) / 4, and 100 (0 + 0.2^2 + 2 * 0.4^2) / 4
    assert float(preservation_loss(picture, foreground, source, mask)) == pytest.approx(0.05 + 9.0)


def test_weights_are_the_published_loops():
    ours, theirs = small_decoder(), small_decoder()
    items = fitted(ours, LATENT, list(ours.parameters()), SOURCE)
    expected = published(theirs, LATENT, list(theirs.parameters()), SOURCE, 20, 1e-2)
    torch.testing.assert_close(items[-1].picture, expected, rtol=1e-4, atol=1e-5)
    assert items[-1].loss < 0.5 * items[0].loss


def test_latents_are_the_published_loops():
    decoder, ours, theirs = small_decoder(), LATENT.clone().requires_grad_(), LATENT.clone().requires_grad_()
    items = fitted(decoder, ours, [ours], SOURCE, rate=0.1)
    expected = published(decoder, theirs, [theirs], SOURCE, 20, 0.1)
    torch.testing.assert_close(items[-1].picture, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_first_is_untouched_and_there_is_one_for_each_update():
    decoder = small_decoder()
    before = decoder(LATENT).detach()
    items = fitted(decoder, LATENT, list(decoder.parameters()), SOURCE, steps=5)
    assert torch.equal(items[0].picture, before) and [item.updates for item in items] == list(range(6))
    # what an item holds is not changed by those after it
    assert items[0].loss == pytest.approx(float(preservation_loss(before, before, SOURCE, MASK)))


def test_nothing_to_do_changes_nothing():
    """Foreground, background and decoded all equal: loss 0, gradient 0, and Adam moves no weight by a bit."""
    decoder = small_decoder()
    before = copy.deepcopy(decoder.state_dict())
    items = fitted(decoder, LATENT, list(decoder.parameters()), decoder(LATENT).detach())
    assert [item.loss for item in items] == [0.0] * 21
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.state_dict().items())
    assert torch.equal(items[-1].picture, items[0].picture)


def test_free_pixels_end_at_the_source_and_at_the_first_picture():
    start = torch.rand(1, 3, 12, 14, generator=torch.Generator().manual_seed(3))
    pixels = start.clone().requires_grad_()
    items = list(reconstruct(lambda: pixels * 1.0, lambda: [pixels], SOURCE, MASK, 800, 0.005))
    half = ((start + 100 * SOURCE) / 101) * (MASK == 0.5)  # the least of a soft mask's two terms
    expected = start * (MASK == 1) + SOURCE * (MASK == 0) + half
    torch.testing.assert_close(items[-1].picture, expected, rtol=0, atol=1e-3)


def test_from_inference_mode_and_nothing_is_yielded_inside_the_context():
    decoder = small_decoder()
    weights = list(decoder.parameters())
    with torch.inference_mode():
        for item in reconstruct(lambda: decoder(LATENT), lambda: weights, SOURCE, MASK, 3, 1e-3):
            assert torch.is_inference_mode_enabled() and not item.picture.requires_grad
    assert item.updates == 3 and not any(weight.is_inference() for weight in weights)


def test_nothing_to_change():
    decoder = small_decoder()
    weights = list(decoder.parameters())
    for decode, parameters in ((lambda: decoder(LATENT), []), (lambda: decoder(LATENT).detach(), weights)):
        with pytest.raises(ValueError, match="no weights that can be changed, or cuts its gradient off"):
            list(reconstruct(decode, lambda given=parameters: given, SOURCE, MASK, 3, 1e-3))


def test_a_loss_that_is_not_a_number():
    decoder = small_decoder()
    with pytest.raises(ValueError, match="the loss is nan after 0 updates"):
        fitted(decoder, LATENT, list(decoder.parameters()), SOURCE * float("nan"))
    with pytest.raises(ValueError, match="after [12] updates; lower learning_rate"):
        fitted(decoder, LATENT, list(decoder.parameters()), SOURCE, rate=1e30)
