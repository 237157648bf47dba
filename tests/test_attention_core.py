import pytest
import torch
from steer.attention.core import Attention, Site, Term, nearest

B, N, L, HEADS, D = 2, 12, 7, 3, 5


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sdpa(q, k, v, bias=None):
    q, k, v = (x.unflatten(-1, (HEADS, D)).transpose(1, 2) for x in (q, k, v))
    mask = None if bias is None else bias[:, None]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def explicit_maps(q, k, bias=0.0):
    """(heads, batch, positions, tokens), the textbook way."""
    q, k = (x.unflatten(-1, (HEADS, D)).permute(2, 0, 1, 3) for x in (q, k))
    return (q @ k.transpose(-1, -2) / D**0.5 + bias).softmax(-1)


def apply(maps, v):
    v = v.unflatten(-1, (HEADS, D)).permute(2, 0, 1, 3)
    return (maps @ v).permute(1, 2, 0, 3).flatten(2)


@pytest.fixture
def qkv():
    return rand(B, N, HEADS * D), rand(B, L, HEADS * D, seed=1), rand(B, L, HEADS * D, seed=2)


def test_a_mix_is_the_edited_map_times_the_values(qkv):
    """Two sources with matrices against the maps edited one by one."""
    q, k, v = qkv
    source_q, source_k = rand(B, N, HEADS * D, seed=3), rand(B, 9, HEADS * D, seed=4)
    matrix, weights = rand(9, L, seed=5), rand(L, seed=6)
    attention = Attention((Term(source_q, source_k, matrix), Term(q, k, weights)), v, HEADS, sdpa)
    maps = explicit_maps(source_q, source_k) @ matrix + explicit_maps(q, k) * weights
    assert torch.allclose(attention.out(), apply(maps, v), atol=1e-5)
    assert torch.allclose(attention.probs(), maps.mean(0), atol=1e-6)


def test_a_bias_is_added_to_the_logits_of_every_head(qkv):
    q, k, v = qkv
    bias = rand(B, N, L, seed=7)
    attention = Attention((Term(q, k, None, bias),), v, HEADS, sdpa)
    maps = explicit_maps(q, k, bias)
    assert torch.allclose(attention.out(), apply(maps, v), atol=1e-5)
    assert torch.allclose(attention.probs(), maps.mean(0), atol=1e-6)
    unbiased = Attention((Term(q, k, None, torch.zeros(B, N, L)),), v, HEADS, sdpa)
    assert torch.allclose(unbiased.out(), sdpa(q, k, v), atol=1e-5)


def test_halves_are_the_halves_of_everything(qkv):
    q, k, v = qkv
    attention = Attention((Term(q, k, None, rand(B, N, L)),), v, HEADS, sdpa)
    assert torch.equal(torch.cat([half.out() for half in attention.halves()]), attention.out())


def test_half_precision_keeps_its_dtype(qkv):
    q, k, v = (x.half() for x in qkv)
    attention = Attention((Term(q, k, rand(L)), Term(q, k, None, rand(B, N, L))), v, HEADS, sdpa)
    assert attention.out().dtype == torch.float16 and attention.probs().dtype == torch.float32


@pytest.mark.parametrize(
    ("grid", "latent", "level"),
    [((16, 16), (64, 64), 1.0), ((32, 32), (64, 64), 4.0), ((32, 32), (128, 128), 1.0), ((24, 16), (96, 64), 1.0)],
)
def test_the_level_is_counted_from_the_papers_resolution(grid, latent, level):
    assert Site(("input", 1, 0), True, grid, latent, 1.0).level == level


def test_a_level_is_found_up_to_rounding():
    sigmas = (14.6, 1.0, 0.03)
    assert nearest(sigmas, 14.6 * (1 + 5e-5)) == 14.6 and nearest(sigmas, 0.03) == 0.03
    assert nearest(sigmas, 1.001) is None and nearest(sigmas, 0.0) is None and nearest((), 1.0) is None
    assert nearest((1.0, 0.0), 0.0) == 0.0
