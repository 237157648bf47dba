import math

import pytest
import torch
from steer.samplers.ddim import ddim
from steer.samplers.guidance import cfg
from steer.samplers.inversion import Inversion
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from steer.samplers.null_text import null_text, step_early_stop, step_learning_rate
from steer.samplers.optimise import Adam
from steer.tests.closed_form import last

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, RECTIFIED_FLOW])
SHAPE, TOKENS, CHANNELS = (4, 6, 6), 3, 8
MAPPING = torch.randn(TOKENS * CHANNELS, math.prod(SHAPE), generator=torch.Generator().manual_seed(9)) / 5


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sigmas_of(law, steps=8):
    top = 1.0 if law.flow else 14.6
    return tuple(top * (1 - i / steps) ** (1 if law.flow else 3) for i in range(steps + 1))


def conditional(x, sigma):
    return 0.6 * x / (1 + sigma)


def linear(x, sigma, embedding):
    """Linear in the embedding, and another answer than the conditional's."""
    return 0.5 * x / (1 + sigma) + (embedding.flatten(1) @ MAPPING).reshape(x.shape)


def inverted(law, batch=1, steps=8, seed=0):
    """What conditional sampling passes through: an inversion without its error."""
    sigmas = sigmas_of(law, steps)
    start = law.noised(normal(batch, *SHAPE, seed=seed), sigmas[0], normal(batch, *SHAPE, seed=seed + 50))
    latents = [start, *(step.x for step in ddim(conditional, start, sigmas, law))]
    return Inversion(sigmas, tuple(latents), law, "Toy", True)


def counting(function):
    def counted(*args):
        counted.calls += 1
        return function(*args)

    counted.calls = 0
    return counted


def by_step(items):
    """The last item of each step."""
    return list({item.step: item for item in items}.values())


def embedding(batch=1):
    return normal(batch, TOKENS, CHANNELS, seed=3)


@LAWS
def test_cfg_1_returns_the_embedding_bitwise_and_calls_nothing(law):
    calls = counting(conditional), counting(linear)
    results = by_step(null_text(*calls, embedding(), inverted(law), 1.0))
    assert len(results) == 8 and all(torch.equal(item.embedding, embedding()) for item in results)
    assert calls[0].calls == calls[1].calls == 0


@LAWS
def test_the_best_embedding_stops_at_once_and_returns_the_picture(law):
    """Where the unconditional already is the conditional, guidance changes nothing."""
    inversion = inverted(law)
    calls = counting(conditional), counting(lambda x, sigma, embedding: conditional(x, sigma) + 0 * embedding.sum())
    results = by_step(null_text(*calls, embedding(), inversion, 7.5))
    assert calls[0].calls == calls[1].calls == 8
    torch.testing.assert_close(results[-1].x, inversion.latents[-1], rtol=0, atol=1e-5)
    assert all(torch.equal(item.embedding, embedding()) for item in results)


@LAWS
def test_linear_model_reaches_least_squares(law):
    """One step: the loss is a quadratic of the embedding, whose least value the pseudo-inverse gives."""
    sigmas = (1.0, 0.4) if law.flow else (2.0, 0.7)
    x, pivot = normal(1, *SHAPE, seed=1), normal(1, *SHAPE, seed=2)
    inversion = Inversion(sigmas, (x, pivot), law, "Toy", True)
    *_, result = null_text(conditional, linear, embedding(), inversion, 3.0, 3000, 0.02, 0.0)

    def after(embedding):
        denoised = cfg(conditional(x, sigmas[0]), linear(x, sigmas[0], embedding), 3.0)
        return law.step(x, denoised, *sigmas).flatten()

    zero = torch.zeros(1, TOKENS, CHANNELS)
    columns = torch.stack([after(row.reshape(zero.shape)) - after(zero) for row in torch.eye(zero.numel())], 1)
    best = torch.linalg.lstsq(columns.double(), (pivot.flatten() - after(zero)).double()[:, None]).solution
    least = (columns.double() @ best + (after(zero) - pivot.flatten()).double()[:, None]).square().mean()
    least /= law.alpha(sigmas[1]) ** 2 + law.std(sigmas[1]) ** 2
    assert float(result.losses) == pytest.approx(float(least), rel=1e-3)
    torch.testing.assert_close(result.embedding.flatten().double(), best[:, 0], rtol=0, atol=0.02)


@LAWS
def test_reconstructs_better_than_without(law):
    inversion = inverted(law)
    plain = last(ddim(lambda x, sigma: cfg(conditional(x, sigma), linear(x, sigma, embedding()), 7.5),
                      inversion.latents[0], inversion.sigmas, law))  # fmt: skip
    *_, result = null_text(conditional, linear, embedding(), inversion, 7.5, 40, 0.1)
    source = inversion.latents[-1]
    assert (result.x - source).square().mean() < 0.2 * (plain - source).square().mean()


@LAWS
def test_result_is_what_sampling_under_the_embeddings_gives(law):
    inversion = inverted(law, 2)
    results = by_step(null_text(conditional, linear, embedding(2), inversion, 5.0, 4))
    under = dict(zip(inversion.sigmas, (item.embedding for item in results), strict=False))

    def guided(x, sigma):
        return cfg(conditional(x, sigma), linear(x, sigma, under[sigma]), 5.0)

    sampled = [step.x for step in ddim(guided, inversion.latents[0], inversion.sigmas, law)]
    for item, x in zip(results, sampled, strict=True):
        torch.testing.assert_close(item.x, x)


@pytest.mark.parametrize("early_stop, predictions", [(0.0, 8 * 5), (1e9, 8)])
def test_calls(early_stop, predictions):
    """At most inner_steps a step; the stop is tested before the first update."""
    calls = counting(conditional), counting(linear)
    items = list(null_text(*calls, embedding(), inverted(VARIANCE_EXPLODING), 7.5, 5, 0.01, early_stop))
    assert calls[0].calls == 8 and calls[1].calls == predictions == len(items)
    if early_stop:
        assert all(torch.equal(item.embedding, embedding()) for item in items)


@LAWS
def test_batch_equals_singles(law):
    """Also where one sample is done before the others."""
    inversion = inverted(law, 3)
    start = embedding(3)

    def run(rows):
        part = Inversion(inversion.sigmas, tuple(x[rows] for x in inversion.latents), law, "Toy", True)
        return by_step(null_text(conditional, linear, start[rows], part, 4.0, 6, 0.05, 2e-3))

    together, alone = run(slice(None)), [run(slice(i, i + 1)) for i in range(3)]
    assert len({tuple(item.inner for item in single) for single in alone}) > 1
    for step, item in enumerate(together):
        for row in range(3):
            torch.testing.assert_close(item.embedding[row], alone[row][step].embedding[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(item.x[row], alone[row][step].x[0], rtol=1e-3, atol=1e-4)


def test_adam_is_torchs():
    gradients = [normal(2, 3, seed=seed) for seed in range(20)]
    theirs = torch.nn.Parameter(normal(2, 3, seed=99))
    ours, adam, optimizer = theirs.detach().clone(), Adam(0.01), torch.optim.Adam([theirs], lr=0.01)
    for gradient in gradients:
        theirs.grad = gradient
        optimizer.step()
        ours = adam.step(ours, gradient)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_schedules_are_the_authors_at_50_steps_and_alike_at_others():
    for step in range(50):
        assert step_learning_rate(0.01, step, 50) == pytest.approx(0.01 * (1 - step / 100))
        assert step_early_stop(1e-5, step, 50) == pytest.approx(1e-5 + 2e-5 * step)
        assert step_learning_rate(0.01, 4 * step, 200) == pytest.approx(step_learning_rate(0.01, step, 50))
        assert step_early_stop(1e-5, 4 * step, 200) == pytest.approx(step_early_stop(1e-5, step, 50))
    assert step_learning_rate(0.01, 999, 1000) > 0


def test_half_precision_and_inference_mode():
    """The embeddings stay float32 (Adam divides by zero in half precision), and gradients flow in inference mode."""
    with torch.inference_mode():
        start = embedding().half()
        results = by_step(null_text(conditional, linear, start, inverted(VARIANCE_EXPLODING), 7.5, 3))
    assert all(item.embedding.dtype == torch.float32 and torch.isfinite(item.embedding).all() for item in results)
    assert not torch.equal(results[-1].embedding, start.float())


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="lower learning_rate"):
        list(null_text(conditional, lambda x, s, e: e.sum() * torch.nan * x, embedding(), inverted(RECTIFIED_FLOW), 3))
