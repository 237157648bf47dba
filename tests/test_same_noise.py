import pytest
import torch
from steer.samplers.same_noise import SameNoise

SHAPE = (4, 3, 5, 6)
DRAWS = {
    "randn of a size": lambda rows, g: torch.randn((rows, 3, 5, 6), generator=g),
    "randn of numbers": lambda rows, g: torch.randn(rows, 3, 5, 6, generator=g),
    "randn by name": lambda rows, g: torch.randn(size=torch.Size((rows, 3, 5, 6)), generator=g, dtype=torch.float64),
    "rand of another side": lambda rows, g: torch.rand([rows, 3, 10, 12], generator=g),
    "randn_like": lambda rows, g: torch.randn_like(torch.zeros(rows, 3, 5, 6)),
    "rand_like": lambda rows, g: torch.rand_like(torch.zeros(rows, 3, 5, 6)),
    "normal": lambda rows, g: torch.normal(torch.ones(rows, 3, 5, 6), torch.full((rows, 3, 5, 6), 2.0), generator=g),
    "normal of a number": lambda rows, g: torch.normal(torch.ones(rows, 3, 5, 6), 2.0, generator=g),
    "bernoulli": lambda rows, g: torch.bernoulli(torch.full((rows, 3, 5, 6), 0.5), generator=g),
    "in place": lambda rows, g: torch.empty(rows, 3, 5, 6).normal_(1.0, 2.0, generator=g),
    "in place, uniform": lambda rows, g: torch.empty(rows, 3, 5, 6).uniform_(generator=g),
    "of every row": lambda rows, g: torch.randn(rows, 1, 1, 1, generator=g),
}


def seeded():
    torch.manual_seed(3)
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("name", DRAWS)
def test_both_halves_are_what_the_first_draws_alone(name):
    draw, generator = DRAWS[name], seeded()
    alone = [draw(2, generator), draw(2, generator)]
    after = torch.rand(1, generator=generator), torch.rand(1)
    generator = seeded()
    with SameNoise(SHAPE):
        both = [draw(4, generator), draw(4, generator)]
    for one, two in zip(alone, both, strict=True):
        assert two.dtype == one.dtype and torch.equal(two, torch.cat([one, one]))
    assert not torch.equal(*both) and (torch.rand(1, generator=generator), torch.rand(1)) == after


@pytest.mark.parametrize("size", [(), (4,), (4, 5), (3, 5, 6), (4, 3, 5, 6, 7), (2, 3, 5, 6), (8, 3, 5, 6)])
def test_what_is_not_of_the_batch_is_drawn_as_it_is(size):
    def drawn():
        torch.manual_seed(3)
        x = torch.randn(size)
        return x, torch.rand_like(x), torch.zeros(size).normal_(), torch.linalg.norm(x)

    plain = drawn()
    with SameNoise(SHAPE):
        assert all(torch.equal(a, b) for a, b in zip(plain, drawn(), strict=True))


def test_what_is_measured_of_the_batch_is_the_first_halfs():
    """As if the second half were equal to it."""
    x, first = torch.randn(SHAPE), slice(0, 2)
    rows = x.flatten(1).std(1), torch.linalg.norm(x.flatten(1), dim=1), x.std((1, 2, 3)), x.mean()
    with SameNoise(SHAPE):
        error = torch.linalg.norm(x) / x.numel() ** 0.5
        assert (x.flatten(1).std(1) == rows[0]).all() and (torch.linalg.norm(x.flatten(1), dim=1) == rows[1]).all()
        assert (x.std((1, 2, 3)) == rows[2]).all() and x.mean() == rows[3]
        assert x.std() == torch.std(x) == x[first].std() and x.norm() == torch.norm(x)
    torch.testing.assert_close(error, torch.linalg.norm(x[first]) / x[first].numel() ** 0.5)


def test_it_can_be_left_for_a_while_and_ends_with_an_error():
    same, plain = SameNoise(SHAPE), lambda: not torch.equal(*torch.randn(SHAPE).chunk(2))
    with pytest.raises(RuntimeError), same:
        assert not plain()
        with same.away():
            assert plain()
        assert not plain()
        with pytest.raises(KeyError), same.away():
            raise KeyError
        assert not plain()
        raise RuntimeError
    assert plain()
