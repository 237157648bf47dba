from math import log1p

import pytest
import torch
from steer.attention.core import Attention, Term
from steer.attention.paint_with_words import LARGEST_RATIO, Painting, Region, largest, painted
from steer.attention.tokens import prompt_of

BATCH, HEADS, GRID, WIDTH = 2, 3, (4, 6), 5
POSITIONS = GRID[0] * GRID[1]
START, END = "<|startoftext|>", "<|endoftext|>"


def prompt(text="a red circle on a blue background", length=12):
    pieces = [START, *(f"{word}</w>" for word in text.split())]
    return prompt_of(text, [pieces + [END] * (length - len(pieces))])


def attention(seed=0, batch=BATCH, tokens=12):
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows):
        return torch.randn(batch, HEADS, rows, WIDTH, generator=generator)

    plain = torch.nn.functional.scaled_dot_product_attention
    return Attention((Term(drawn(POSITIONS), drawn(tokens)),), drawn(tokens), plain)


def maps_of(attention):
    """(batch, heads, positions, tokens), by the layer's own explicit softmax of each head alone."""
    (term,) = attention.terms
    logits = term.q @ term.k.transpose(-1, -2) * WIDTH**-0.5
    return (logits if term.raised is None else logits + term.raised).softmax(-1)


def log_odds(maps, token):
    return maps[..., token].log() - (1.0 - maps[..., token]).log()


def left_half(strength=1.0, phrase="circle", size=GRID):
    mask = torch.zeros(size)
    mask[:, : size[1] // 2] = 1
    return Region(mask, phrase, strength)


@pytest.mark.parametrize("sigma, flow, log_ratio", [(3.0, False, log1p(3.0)), (0.75, True, log1p(3.0)),
                                                    (1.0, True, log1p(LARGEST_RATIO))])  # fmt: skip
def test_one_painted_token_moves_by_the_formula(sigma, flow, log_ratio):
    """Log-odds shift `lambda w log(1 + r) max(QK^T) / sqrt(d)` inside, nothing outside."""
    plain, painting = attention(), Painting((left_half(0.5),), prompt(), 0.4)
    w = painting.map(GRID, 12, "cpu")
    after = painted(plain, w, painting.factor(sigma, flow))
    shift = log_odds(maps_of(after), 3) - log_odds(maps_of(plain), 3)
    best = (plain.terms[0].q @ plain.terms[0].k.transpose(-1, -2)).amax((1, 2, 3))
    expected = 0.4 * 0.5 * log_ratio * best[:, None, None] * WIDTH**-0.5
    inside = torch.arange(POSITIONS) % GRID[1] < GRID[1] // 2
    torch.testing.assert_close(shift[..., inside], expected.expand_as(shift[..., inside]), rtol=1e-5, atol=1e-5)
    assert shift[..., ~inside].abs().max() < 1e-5
    torch.testing.assert_close(after.probs(), maps_of(after).mean(1), rtol=1e-5, atol=1e-6)


def test_everything_painted_alike_is_nothing_painted():
    plain = attention()
    out = painted(plain, torch.full((1, 1, POSITIONS, 12), 0.7), 1.3).out()
    torch.testing.assert_close(out, plain.out(), rtol=1e-5, atol=1e-5)


def test_scale_is_each_samples_own():
    both, painting = attention(), Painting((left_half(),), prompt(), 0.4)
    w = painting.map(GRID, 12, "cpu")
    q, k, loudness = both.terms[0].q, both.terms[0].k, torch.tensor([1.0, 50.0])[:, None, None, None]
    loud = Attention((Term(q * loudness, k),), both.v, both.kernel)
    alone = Attention((Term(q[:1], k[:1]),), both.v[:1], both.kernel)
    torch.testing.assert_close(painted(loud, w, 0.4).out()[:1], painted(alone, w, 0.4).out())


def test_scale_never_turns_round():
    """Where all of QK^T is negative the paper's factor is, and would push the phrase out of its place."""
    q, k = torch.ones(1, HEADS, POSITIONS, WIDTH), -torch.ones(1, HEADS, 12, WIDTH)
    assert torch.equal(largest(q, k), torch.zeros(1, 1, 1, 1))
    assert largest(q.half() * 250, -k.half() * 250) == 250 * 250 * WIDTH  # over float16's range


def test_bias_adds_to_one_that_is_there():
    plain, w = attention(), torch.rand(1, 1, POSITIONS, 12)
    twice = painted(painted(plain, w, 0.2), w, 0.3)
    torch.testing.assert_close(twice.out(), painted(plain, w, 0.5).out(), rtol=1e-5, atol=1e-5)


def test_nothing_acts_without_weight_or_noise():
    assert Painting((left_half(),), prompt(), 0.0).factor(9.0, False) == 0.0
    assert Painting((left_half(),), prompt(), 0.4).factor(0.0, False) == 0.0
    assert Painting((left_half(),), prompt(), 0.4).factor(0.0, True) == 0.0


def test_regions_of_one_phrase_take_the_strongest_and_of_two_phrases_both():
    everywhere = torch.ones(8, 8)
    regions = left_half(), Region(everywhere, "circle", 0.25), Region(everywhere, "blue background", 0.5)
    w = Painting(regions, prompt(), 0.4).map(GRID, 12, "cpu")[:, 0].unflatten(1, GRID)
    assert w.shape == (1, *GRID, 12)
    assert (w[0, :, :3, 3] == 1.0).all() and (w[0, :, 3:, 3] == 0.25).all()
    assert (w[..., 6:8] == 0.5).all()
    others = [0, 1, 2, 4, 5, 8, 9, 10, 11]
    assert not w[..., others].any()


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (64, 96), (2, 3)])
def test_masks_of_any_size_fit_a_grid_that_is_not_square(size):
    top = torch.zeros(size)
    top[: size[0] // 2] = 1
    w = Painting((Region(top, "circle"),), prompt(), 0.4).map(GRID, 12, "cpu")[0, 0, :, 3].unflatten(0, GRID)
    assert (w >= 0).all() and (w <= 1).all()
    assert (w[0] > 0.9).all() and (w[-1] < 0.1).all()
    assert w.mean() == pytest.approx(0.5, abs=0.01)


def test_a_mask_for_each_picture_and_one_for_all():
    each = torch.stack([torch.ones(GRID), torch.zeros(GRID)])
    regions = Region(each, "red"), Region(torch.ones(GRID), "blue")
    w = Painting(regions, prompt(), 0.4).map(GRID, 12, "cpu")
    assert w.shape == (2, 1, POSITIONS, 12)
    assert (w[0, ..., 2] == 1).all() and not w[1, ..., 2].any() and (w[..., 6] == 1).all()


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.full((8, 8), 255.0), "runs from 255 to 255"),
        (torch.full((8, 8), float("nan")), "runs from nan"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"'cat'.*{message}"):
        Region(mask, "cat")


def test_a_region_that_paints_nothing_leaves_the_others_as_they_are():
    empty = Region(torch.zeros(64, 64), "blue background")
    both, alone = Painting((left_half(), empty), prompt(), 0.4), Painting((left_half(),), prompt(), 0.4)
    assert torch.equal(both.map(GRID, 12, "cpu"), alone.map(GRID, 12, "cpu"))
    assert Painting((empty,), prompt(), 0.4).factor(5.0, False) == 0.0 < both.factor(5.0, False)


def test_phrases_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="'cat'.*circle"):
        Painting((left_half(phrase="cat"),), prompt(), 0.4)
    with pytest.raises(ValueError, match="phrase is empty"):
        left_half(phrase=" ")
