import pytest
import torch
from steer.attention.core import Attention, Term, nearest
from steer.attention.layers import UNET, Site, acts_in, level

B, N, L, HEADS, D = 2, 12, 7, 3, 5


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sdpa(q, k, v, bias=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)


def explicit_maps(q, k, bias=0.0):
    """(batch, heads, positions, tokens), the textbook way."""
    return (q @ k.transpose(-1, -2) / D**0.5 + bias).softmax(-1)


@pytest.fixture
def qkv():
    return rand(B, HEADS, N, D), rand(B, HEADS, L, D, seed=1), rand(B, HEADS, L, D, seed=2)


def test_a_mix_is_the_edited_map_times_the_values(qkv):
    """Two sources with matrices against the maps edited one by one."""
    q, k, v = qkv
    source_q, source_k = rand(B, HEADS, N, D, seed=3), rand(B, HEADS, 9, D, seed=4)
    matrix, weights = rand(9, L, seed=5), rand(L, seed=6)
    attention = Attention((Term(source_q, source_k, matrix), Term(q, k, weights)), v, sdpa)
    maps = explicit_maps(source_q, source_k) @ matrix + explicit_maps(q, k) * weights
    assert torch.allclose(attention.out(), maps @ v, atol=1e-5)
    assert torch.allclose(attention.probs(), maps.mean(1), atol=1e-6)


def test_a_mix_is_of_the_words_among_other_columns(qkv):
    """A joint layer: text of 9 tokens in the source and 4 in the target, after a column and before two others."""
    q, k, v = qkv
    source_q, source_k = rand(B, HEADS, N, D, seed=3), rand(B, HEADS, 12, D, seed=4)
    matrix, weights = rand(9, 4, seed=5), rand(4, seed=6)
    terms = Term(source_q, source_k, matrix, rest=0.0), Term(q, k, weights)
    attention = Attention(terms, v, sdpa, words=slice(1, 5))
    whole = torch.zeros(12, L)
    whole[1:10, 1:5] = matrix
    scale = torch.cat([torch.ones(1), weights, torch.ones(2)])
    maps = explicit_maps(source_q, source_k) @ whole + explicit_maps(q, k) * scale
    assert torch.allclose(attention.out(), maps @ v, atol=1e-5)
    assert torch.allclose(attention.probs(), maps.mean(1)[..., 1:5], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "picture", "kind"),
    [(None, slice(0, 9), "self"), (slice(0, 9), None, "cross"), (slice(0, 4), slice(4, 9), "joint")],
)
def test_a_layer_is_what_its_columns_are(words, picture, kind):
    assert Site("blocks.0", words, picture, (3, 3), (6, 6), 1.0, UNET).kind == kind
    assert acts_in(kind, True, False) == (words is not None) and acts_in(kind, False, True) == (picture is not None)


def test_a_bias_is_added_to_the_logits_of_every_head(qkv):
    q, k, v = qkv
    bias = rand(B, 1, N, L, seed=7)
    attention = Attention((Term(q, k, None, bias),), v, sdpa)
    maps = explicit_maps(q, k, bias)
    assert torch.allclose(attention.out(), maps @ v, atol=1e-5)
    assert torch.allclose(attention.probs(), maps.mean(1), atol=1e-6)
    unbiased = Attention((Term(q, k, None, torch.zeros(1, 1, 1, L)),), v, sdpa)
    assert torch.allclose(unbiased.out(), sdpa(q, k, v), atol=1e-5)


def test_halves_are_the_halves_of_everything(qkv):
    q, k, v = qkv
    attention = Attention((Term(q, k, None, rand(B, 1, N, L)),), v, sdpa)
    assert torch.equal(torch.cat([half.out() for half in attention.halves()]), attention.out())


def test_half_precision_keeps_its_dtype(qkv):
    q, k, v = (x.half() for x in qkv)
    attention = Attention((Term(q, k, rand(L)), Term(q, k, None, rand(B, 1, N, L))), v, sdpa)
    assert attention.out().dtype == torch.float16 and attention.probs().dtype == torch.float32


@pytest.mark.parametrize(
    ("grid", "latent", "times"),
    [((16, 16), (64, 64), 1.0), ((32, 32), (64, 64), 4.0), ((32, 32), (128, 128), 1.0), ((24, 16), (96, 64), 1.0)],
)
def test_the_level_is_counted_from_the_papers_resolution(grid, latent, times):
    assert level(Site("input.1", slice(0, L), None, grid, latent, 1.0, UNET)) == times


def test_a_level_is_found_up_to_rounding():
    sigmas = (14.6, 1.0, 0.03)
    assert nearest(sigmas, 14.6 * (1 + 5e-5)) == 14.6 and nearest(sigmas, 0.03) == 0.03
    assert nearest(sigmas, 1.001) is None and nearest(sigmas, 0.0) is None and nearest((), 1.0) is None
    assert nearest((1.0, 0.0), 0.0) == 0.0
