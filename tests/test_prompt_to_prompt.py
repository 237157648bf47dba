from dataclasses import replace

import pytest
import torch
from steer.attention.alignment import mapper
from steer.attention.core import Attention, Term
from steer.attention.layers import UNET, Site
from steer.attention.prompt_to_prompt import (
    BlendedTarget,
    BlendMask,
    Edit,
    LocalBlend,
    Timing,
    edited,
    mixes,
    shared_layout,
)
from steer.attention.tokens import END, START, prompt_of
from steer.attention.word_values import word_values, word_windows
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.tests.test_attention_core import HEADS, D, explicit_maps, rand, sdpa

N = 12


def prompt(words, length=10):
    pieces = [START, *(f"{word}</w>" for word in words.split()), END]
    return prompt_of(words, [pieces + [END] * (length - len(pieces))])


def edit_of(source, target, equalizer="", windows="", mapping="auto"):
    a, b = prompt(source), prompt(target)
    matrix, kept = mapper(a, b, mapping)
    return Edit(a, b, matrix, kept, word_values(b, equalizer), tuple(word_windows(b, windows).items()))


def rows(tokens, seed):
    q, k, v = (rand(1, HEADS, n, D, seed=seed + i) for i, n in enumerate((N, tokens, tokens)))
    return Attention((Term(q, k),), v, sdpa)


def maps(attention):
    (term,) = attention.terms
    return explicit_maps(term.q, term.k)


@pytest.mark.parametrize(
    ("source", "target", "mapping"),
    [
        ("a cat sits", "a dog sits", "replace"),
        ("a cat sits", "a big cat sits there", "refine"),
        ("a cat", "a cat", "auto"),
    ],
)
@pytest.mark.parametrize("copies", [1, 2])
def test_the_edit_is_the_papers_on_explicit_maps(source, target, mapping, copies):
    """Section 3.2, and the gate of Algorithm 1, on maps made one by one; contexts repeated by the host folded back."""
    edit = edit_of(source, target, "sits: 2" if "sits" in target else "cat: -1", mapping=mapping)
    a, b = rows(10, 0), rows(10, 5)
    gates = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1, 1, 1])
    gate, kept, scale = gates, edit.kept, edit.equalizer
    replaced = kept * (maps(a) @ edit.mapper) + (1 - kept) * maps(b)
    expected = gate * scale * replaced + (1 - gate) * maps(b)

    def repeated(attention):
        (term,) = attention.terms
        k, v = (x.repeat(1, 1, copies, 1) for x in (term.k, attention.v))
        return replace(attention, terms=(Term(term.q, k),), v=v)

    out = edited(repeated(a).terms, repeated(b), edit, mixes(edit, gates))
    assert torch.allclose(out.out(), expected @ b.v, atol=1e-5)
    assert torch.allclose(out.probs(), expected.mean(1), atol=1e-6)


def test_nothing_is_computed_for_a_side_that_has_no_part():
    same = edit_of("a cat", "a cat")
    source, target = mixes(same, torch.ones(10))
    assert torch.equal(source, torch.eye(10)) and target is None
    source, target = mixes(same, torch.zeros(10))
    assert source is None and torch.equal(target, torch.ones(10))


def test_self_attention_is_shared_through_queries_and_keys():
    a, b = rows(N, 0), rows(N, 5)
    out = shared_layout(a.terms[0], b).out()
    assert torch.allclose(out, maps(a) @ b.v, atol=1e-6)


def test_words_have_windows_of_their_own_in_sigmas():
    edit = edit_of("a cat sits", "a dog sits", windows="dog: 0.2-0.5")
    timing = Timing(edit, lambda share: 10.0 - 10.0 * share, 0.8, 0.4)
    for sigma, dog, others in ((10.0, 0, 1), (8.0, 1, 1), (5.1, 1, 1), (5.0, 0, 1), (2.1, 0, 1), (2.0, 0, 0)):
        gates = timing.gates(sigma)
        assert gates[2] == dog and gates[1] == gates[3] == others, sigma
    assert timing.acts("self", 6.1) and not timing.acts("self", 6.0)
    assert not Timing(edit_of("a", "a"), lambda share: 10.0 - 10.0 * share, 0.0, 0.0).acts("cross", 10.0)


def test_columns_are_mixed_anew_at_each_level():
    edit = edit_of("a cat sits", "a dog sits", windows="dog: 0.2-0.5")
    timing = Timing(edit, lambda share: 10.0 - 10.0 * share, 0.8, 0.4)
    dog = torch.tensor([0, 0, 1.0] + [0] * (edit.target.length - 3))
    for sigma, own in ((10.0, dog), (8.0, 0 * dog), (8.0, 0 * dog), (10.0, dog)):
        source, target = timing.mixed(sigma, torch.device("cpu"))
        assert torch.equal(source, edit.mapper * (1 - own))
        assert torch.equal(0 * dog if target is None else target, own)


def site(grid, latent=(64, 64), cross=True, part="input"):
    columns = slice(0, 77)
    return Site(f"{part}_blocks.1", *((columns, None) if cross else (None, columns)), grid, latent, 1.0, UNET)


def test_layers_are_chosen_as_published():
    """16 x 16 of a 64 x 64 latent; the middle is left out of the blend, and self-attention above is not shared."""
    blended = [site((16, 16)), site((32, 32), (128, 128)), site((24, 12), (96, 48))]
    others = [site((32, 32)), site((8, 8)), site((16, 16), part="middle"), site((16, 16), cross=False)]
    assert all(map(UNET.blends, blended)) and not any(map(UNET.blends, others))
    shared = [site(grid, cross=False) for grid in ((16, 16), (8, 8))]
    assert all(map(UNET.shares, shared)) and not any(map(UNET.shares, [site((32, 32), cross=False), site((8, 8))]))


def test_each_prompts_softmax_keeps_its_own_mask():
    edit, (a, b) = edit_of("a cat sits", "a big cat sits"), (rows(10, 0), rows(10, 5))
    masks = [rand(1, 1, 1, 10, seed=seed) for seed in (7, 8)]
    source, target = (replace(x, terms=(replace(x.terms[0], bias=m),)) for x, m in zip((a, b), masks, strict=True))
    maps_a, maps_b = (explicit_maps(x.terms[0].q, x.terms[0].k, m) for x, m in zip((a, b), masks, strict=True))
    expected = edit.kept * (maps_a @ edit.mapper) + (1 - edit.kept) * maps_b
    out = edited(source.terms, target, edit, mixes(edit, torch.ones(10)))
    assert torch.allclose(out.out(), expected @ b.v, atol=1e-5)
    assert torch.allclose(out.probs(), expected.mean(1), atol=1e-6)


def test_the_softmax_that_is_shared_keeps_its_mask():
    a, b, mask = rows(N, 0), rows(N, 5), rand(1, 1, 1, N, seed=9)
    out = shared_layout(replace(a.terms[0], bias=mask), b).out()
    assert torch.allclose(out, explicit_maps(a.terms[0].q, a.terms[0].k, mask) @ b.v, atol=1e-6)


def test_the_blend_is_per_sample_and_of_either_prompts_words():
    blend = LocalBlend((1,), (2,), 0.3, 0.2)
    mask = BlendMask(blend)
    source, target = torch.full((2, 64, 4), 0.01), torch.full((2, 64, 4), 0.01)
    source[0, 9, 1] = 1.0  # row 1, column 1
    target[1, 54, 2] = 0.2  # row 6, column 6; weak, but the strongest of its sample
    source[1, :, 1], target[0, :, 2] = 0.0, 0.0
    mask.add(source, target, (8, 8))
    inside = mask.mask(16, 16)
    expected = torch.zeros(2, 1, 16, 16)
    expected[0, :, 0:6, 0:6] = 1  # three by three positions, each four latent values
    expected[1, :, 10:16, 10:16] = 1
    assert torch.equal(inside, expected)


def test_a_blend_without_a_layer_says_so():
    with pytest.raises(ValueError, match="local blend found no cross-attention"):
        BlendMask(LocalBlend((1,), (1,), 0.3, 0.2)).mask(16, 16)


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, RECTIFIED_FLOW])
@pytest.mark.parametrize("start", [0, 3])
def test_a_sampler_that_keeps_its_own_latent_ends_where_blending_after_each_step_does(law, start):
    """Section 4.1 as published (the latent is blended after each step), with a mask that starts late and changes."""
    sigmas = [1.0, 0.8, 0.6, 0.45, 0.3, 0.15, 0.05]
    generator = torch.Generator().manual_seed(0)
    first, edit = (torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    masks = [(torch.rand(2, 1, 6, 6, generator=generator) > 0.5).double() for _ in sigmas]

    def denoised(x, bias):
        return torch.tanh(x) + bias

    def step(x, estimate, index):
        return law.step(x, estimate, sigmas[index], sigmas[index + 1])

    source = target = first
    for index in range(len(sigmas) - 1):
        mask, moved = masks[index], step(target, denoised(target, edit), index)
        if index >= start:  # the estimate outside is the source's, as in the guider
            outside = denoised(source, 0.0)
            moved = step(target, outside + mask * (denoised(target, edit) - outside), index)
        source = step(source, denoised(source, 0.0), index)
        target = source + mask * (moved - source) if index >= start else moved

    blended, x, own = BlendedTarget(), first, first  # the sampler never sees what `moved` does
    for index in range(len(sigmas) - 1):
        seen = blended.moved(x, own, sigmas[index])
        estimates = denoised(x, 0.0), denoised(seen, edit)
        if index >= start:
            blended.mask = masks[index]
        x, own = step(x, estimates[0], index), step(own, blended.blend(*estimates), index)
    torch.testing.assert_close(blended.moved(x, own, sigmas[-1]), target, rtol=0, atol=1e-12)
    assert not torch.allclose(own, target, atol=1e-3)  # the drift is there
