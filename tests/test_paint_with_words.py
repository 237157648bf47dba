from dataclasses import replace
from math import log1p

import pytest
import torch
from steer.attention import core
from steer.attention.core import Attention, Term
from steer.attention.paint_with_words import JOINT, LARGEST_RATIO, Painting, Region, largest, painted
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


def joint():
    """A layer of 3 columns of text beside the words, the words, and a picture that is louder than any word."""
    own, generator = attention(), torch.Generator().manual_seed(3)
    loud = 30.0 * torch.randn(BATCH, HEADS, POSITIONS, WIDTH, generator=generator)
    (term,), before = own.terms, torch.ones(BATCH, HEADS, 3, WIDTH)
    k, v = (torch.cat([before, x, loud], 2) for x in (term.k, own.v))
    return Attention((Term(term.q, k),), v, own.kernel, words=slice(3, 15))


def test_in_a_joint_layer_the_words_move_by_the_largest_of_words_alone():
    plain, painting = joint(), Painting((left_half(0.5),), prompt(), 0.4)
    (term,) = plain.terms
    w, factor = painting.map(GRID, plain.tokens, "cpu"), painting.factor(3.0, False)
    best = (term.q @ term.k[:, :, plain.words].mT).amax((1, 2, 3)).clamp_min(0.0)
    bias = torch.zeros(BATCH, 1, POSITIONS, term.k.shape[2])
    bias[..., 3 + 3] = JOINT * w[..., 3] * factor * best[:, None, None] * WIDTH**-0.5
    maps = (term.q @ term.k.mT * WIDTH**-0.5 + bias).softmax(-1)
    after = painted(plain, w, factor)
    torch.testing.assert_close(after.out(), maps @ plain.v, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.probs(), maps.mean(1)[..., plain.words], rtol=1e-4, atol=1e-6)
    halves = torch.cat([half.out() for half in after.halves()])
    torch.testing.assert_close(halves, after.out(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 4 * 39 * BATCH * 5])
def test_some_rows_at_a_time_are_all_rows(monkeypatch, at_once):
    plain, mask = joint(), torch.randn(1, 1, 1, 39, generator=torch.Generator().manual_seed(4))
    plain = replace(plain, terms=(replace(plain.terms[0], bias=mask),))
    after = painted(plain, torch.rand(1, 1, POSITIONS, 12, generator=torch.Generator().manual_seed(5)), 1.3)
    whole = after.out(), after.probs()
    monkeypatch.setattr(core, "AT_ONCE", at_once)
    for some, all_rows in zip((after.out(), after.probs()), whole, strict=True):
        torch.testing.assert_close(some, all_rows, rtol=1e-5, atol=1e-6)


def test_queries_that_share_keys_are_as_if_each_had_its_own():
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(BATCH, heads, 8, WIDTH, generator=generator) for heads in (6, 2))
    torch.testing.assert_close(largest(q, k), largest(q, k.repeat_interleave(3, 1)))


@pytest.mark.parametrize("masks, frames", [(1, (0, 0, 0)), (3, (0, 1, 2)), (9, (0, (1, 4), (5, 8)))])
def test_a_video_has_a_mask_for_all_frames_or_one_for_each(masks, frames):
    """Of the frames of the picture, of which the first latent frame holds one and each further one four, any counts."""
    mask = (torch.rand(masks, *GRID, generator=torch.Generator().manual_seed(7)) > 0.7).float()
    w = Painting((Region(mask, "circle"),), prompt(), 0.4).map((3, *GRID), 12, "cpu", 2)[:, 0, :, 3]
    for frame, of in enumerate(frames):
        place = mask[of[0] : of[1] + 1].amax(0) if isinstance(of, tuple) else mask[of]
        assert torch.equal(w.unflatten(1, (3, -1))[:, frame], place.flatten().expand(len(w), -1))
