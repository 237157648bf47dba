from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter
from steer.attention.attention_maps import Recorder, Recording, heat, smoothed
from steer.attention.core import Attention, Term
from steer.attention.layers import UNET, Site
from steer.samplers.window import Window

HEADS, WIDTH, TOKENS = 2, 3, 5
INPUT, OUTPUT = "input_blocks.1", "output_blocks.0"


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention_of(grid, batch=2, seed=0, tokens=TOKENS, mix=None):
    q = rand(batch, HEADS, grid[0] * grid[1], WIDTH, seed=seed)
    k = rand(batch, HEADS, tokens, WIDTH, seed=seed + 1)
    return Attention((Term(q, k, mix),), torch.zeros(batch, 1, 1, 1), kernel=None)


def site_of(grid, sigma, block=INPUT, cross=True, latent=(6, 4)):
    words, picture = (slice(0, TOKENS), None) if cross else (None, slice(0, grid[0] * grid[1]))
    return Site(f"{block}.attn{1 + cross}", words, picture, grid, latent, sigma, UNET)


def record(recorder, attention, site):
    recorder.add([attention], site)


def recording_of(maps, latent=(16, 16)):
    """From {grid: (batch, tokens, height, width)}."""
    rows = {grid: values.flatten(2).transpose(1, 2) for grid, values in maps.items()}
    return Recording(rows, {}, latent, (1.0,), TOKENS, 0.0, 0.0)


class TestRecorder:
    def test_the_average_is_over_calls_and_layers_of_a_resolution(self):
        recorder, fine, coarse = Recorder(Window.until(9.0), Window.until(9.0)), (6, 4), (3, 2)
        given = [(fine, 2.0, INPUT), (fine, 2.0, OUTPUT), (coarse, 2.0, OUTPUT), (fine, 1.0, INPUT)]
        for seed, (grid, sigma, block) in enumerate(given):
            record(recorder, attention_of(grid, seed=seed), site_of(grid, sigma, block))
        recording = recorder.finish((2.0, 1.0), TOKENS)
        maps = [attention_of(grid, seed=seed).probs() for seed, (grid, *_) in enumerate(given)]
        torch.testing.assert_close(recording.maps[fine], (maps[0] + maps[1] + maps[3]) / 3)
        torch.testing.assert_close(recording.maps[coarse], maps[2])
        assert recording.latent == (6, 4) and recording.sigmas == (2.0, 1.0) and recording.tokens == TOKENS
        assert not recording.terms

    def test_queries_are_kept_above_their_level_and_give_the_map_again(self):
        recorder, grid = Recorder(Window.until(1.0), Window.until(3.0)), (3, 2)
        kept = []
        for sigma in (4.0, 2.0, 1.0):
            for cross in (True, False):
                attention = attention_of(grid, seed=int(10 * sigma) + cross)
                record(recorder, attention, site_of(grid, sigma, cross=cross))
                kept.append((sigma, cross, attention))
        maps, queries = 2 * 6 * TOKENS, 2 * HEADS * WIDTH * 6
        # float32, a batch of two: three layers' queries, two levels' words and one level's positions
        assert recorder.nbytes() == 4 * (maps + 3 * queries + 3 * 2 * HEADS * WIDTH * TOKENS)
        recording = recorder.finish((4.0, 2.0, 1.0), TOKENS)
        for sigma, cross, attention in kept:
            term = recording.term(site_of(grid, sigma * (1 + 1e-6), cross=cross))
            if sigma > (1.0 if cross else 3.0):
                assert torch.equal(term.q, attention.terms[0].q) and torch.equal(term.k, attention.terms[0].k)
            else:
                assert term is None
        assert recording.term(site_of(grid, 4.0, OUTPUT)) is None and recording.term(site_of(grid, 3.0)) is None

    def test_keys_of_words_are_kept_once_as_long_as_they_stay_the_same(self):
        recorder, grid = Recorder(Window(), Window()), (3, 2)
        q = [rand(1, HEADS, 6, WIDTH, seed=seed) for seed in range(4)]
        texts = [rand(1, HEADS, TOKENS, WIDTH, seed=seed) for seed in (8, 9)]
        given = {4.0: (q[0], texts[0]), 3.0: (q[1], texts[0].clone()), 2.0: (q[2], texts[1]), 1.0: (q[3], texts[1])}
        for sigma, pair in given.items():
            record(recorder, Attention((Term(*pair),), torch.zeros(1, 1, 1, 1), None), site_of(grid, sigma))
            left = [level for level in given if level < sigma]
            assert recorder.ahead(left) == len(left) * q[0].nbytes
        assert recorder.nbytes() == 4 * q[0].nbytes + 2 * texts[0].nbytes + 4 * 6 * TOKENS
        found = recorder.finish(tuple(given), TOKENS)
        for sigma, (query, text) in given.items():
            term = found.term(site_of(grid, sigma))
            assert torch.equal(term.q, query) and torch.equal(term.k, text)

    def test_what_is_ahead_has_a_window_for_each_kind(self):
        recorder, grid, levels = Recorder(Window.until(1.0), Window.until(3.0)), (3, 2), (4.0, 3.5, 2.0, 1.0)
        for cross in (True, False):
            record(recorder, attention_of(grid), site_of(grid, 4.0, cross=cross))
        query, keys = 4 * 2 * HEADS * WIDTH * 6, 4 * 2 * HEADS * WIDTH * TOKENS
        assert recorder.ahead(levels[1:]) == 2 * query + (query + keys)

    def test_kept_queries_are_copies(self):
        recorder, attention = Recorder(Window(), Window()), attention_of((3, 2))
        record(recorder, attention, site_of((3, 2), 1.0))
        before = attention.terms[0].q.clone()
        attention.terms[0].q.zero_()
        assert torch.equal(recorder.finish((1.0,), TOKENS).term(site_of((3, 2), 1.0)).q, before)

    def test_edited_attention_is_looked_at_but_not_kept(self):
        recorder, attention = Recorder(Window(), Window()), attention_of((3, 2), mix=torch.arange(TOKENS).float())
        record(recorder, attention, site_of((3, 2), 1.0))
        recording = recorder.finish((1.0,), TOKENS)
        torch.testing.assert_close(recording.maps[3, 2], attention.probs())
        assert not recording.terms

    def test_parts_of_a_batch_are_put_together(self):
        recorder, parts = (
            Recorder(Window(), Window()),
            [attention_of((3, 2), seed=seed, tokens=n) for seed, n in ((0, 7), (5, 4))],
        )
        recorder.add(parts, site_of((3, 2), 1.0))
        maps = recorder.finish((1.0,), 7).maps[3, 2]
        torch.testing.assert_close(maps[:2], parts[0].probs())
        torch.testing.assert_close(maps[2:, :, :4], parts[1].probs())
        assert maps.shape[0] == 4 and not maps[2:, :, 4:].any()

    def test_a_run_without_the_positive_conditioning(self):
        with pytest.raises(ValueError, match="never used its positive conditioning"):
            Recorder(Window(), Window()).finish((1.0,), TOKENS)


class TestHeat:
    def spot(self, grid, row, column, token=1, batch=1):
        values = torch.full((batch, TOKENS, *grid), 0.1)
        values[:, token, row, column] = 0.9
        return values

    @pytest.mark.parametrize("grid", [(16, 16), (12, 20), (9, 5)])
    def test_the_hottest_place_is_where_the_word_is(self, grid):
        """Half a cell of the map is the exactness there can be."""
        recording = recording_of({grid: self.spot(grid, 3, 1)}, grid)
        hot = heat(recording, [1], 8 * grid[0], 8 * grid[1])
        assert hot.shape == (1, 8 * grid[0], 8 * grid[1])
        row, column = divmod(int(hot.argmax()), 8 * grid[1])
        assert abs(row - 27.5) <= 4 and abs(column - 11.5) <= 4
        assert hot.min() == 0.0 and hot.max() == 1.0

    def test_tokens_of_a_phrase_add_up(self):
        maps = rand(2, TOKENS, 16, 16).softmax(1)
        together = torch.cat([maps, maps[:, [1, 3]].sum(1, keepdim=True)], 1)
        recording = recording_of({(16, 16): together})
        torch.testing.assert_close(heat(recording, [1, 3], 64, 64), heat(recording, [TOKENS], 64, 64))
        assert not torch.allclose(heat(recording, [1], 64, 64), heat(recording, [1, 3], 64, 64), atol=0.1)

    def test_resolutions_count_alike_and_the_finest_do_not(self):
        """Of 64 x 64 latents, as Stable Diffusion's: 8 x 8 to 32 x 32."""
        maps = {(side, side): rand(1, TOKENS, side, side, seed=side).softmax(1) for side in (8, 16, 32, 64)}
        used = {grid: maps[grid] for grid in list(maps)[:3]}
        found = heat(recording_of(maps, (64, 64)), [2], 64, 64)
        assert torch.equal(found, heat(recording_of(used, (64, 64)), [2], 64, 64))
        sums = sum(
            torch.nn.functional.interpolate(values[:, 2:3], (64, 64), mode="bicubic", antialias=True)
            for values in used.values()
        )[:, 0]
        torch.testing.assert_close(found, (sums - sums.min()) / (sums.max() - sums.min()))
        assert torch.equal(  # of 128 x 128 latents 64 x 64 is not fine
            heat(
                recording_of({(64, 64): maps[64, 64], (128, 128): rand(1, TOKENS, 128, 128)}, (128, 128)), [2], 64, 64
            ),
            heat(recording_of({(64, 64): maps[64, 64]}, (128, 128)), [2], 64, 64),
        )

    def test_a_model_with_fine_maps_alone(self):
        fine, finer = self.spot((64, 64), 5, 9), self.spot((128, 128), 100, 100)
        hot = heat(recording_of({(64, 64): fine, (128, 128): finer}, (64, 64)), [1], 64, 64)
        assert int(hot.argmax()) == 5 * 64 + 9

    def test_each_sample_by_itself(self):
        maps = rand(2, TOKENS, 16, 16).softmax(1)
        both = heat(recording_of({(16, 16): maps * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1)}), [1], 64, 64)
        singles = [heat(recording_of({(16, 16): one}), [1], 64, 64) for one in maps.split(1)]
        torch.testing.assert_close(both, torch.cat(singles), rtol=1e-4, atol=1e-4)
        assert torch.equal(both.amax((1, 2)), torch.ones(2))

    def test_a_word_that_is_everywhere_alike_is_nowhere_hot(self):
        recording = recording_of({(16, 16): torch.full((1, TOKENS, 16, 16), 0.2)})
        assert heat(recording, [1], 64, 64).abs().max() < 1e-3


@pytest.mark.parametrize("height, width, deviation", [(64, 64, 1.0), (80, 128, 1.0), (32, 32, 0.5), (18, 32, 0.375)])
def test_maps_of_joint_layers_are_smoothed_as_scipy_does(height, width, deviation):
    maps = rand(2, 1, height, width).abs()
    filtered = [gaussian_filter(one[0].numpy(), deviation, radius=3, mode="nearest") for one in maps]
    expected = torch.stack([torch.from_numpy(one) for one in filtered])
    torch.testing.assert_close(smoothed(maps)[:, 0], expected)
    recording = replace(recording_of({(height, width): maps}, (2 * height, 2 * width)), grainy=True)
    low, high = (end((1, 2), keepdim=True) for end in (expected.amin, expected.amax))
    out = heat(recording, [0], height, width)
    torch.testing.assert_close(out, (expected - low) / (high - low), rtol=1e-4, atol=1e-5)


def test_the_heat_of_a_video_is_from_0_to_1_over_its_frames():
    maps = rand(2, 3, 4, 5).abs()
    recording = Recording({(3, 4, 5): maps.reshape(2, 60, 1)}, {}, (3, 8, 10), (1.0,), 1, 0.0, 0.0)
    assert recording.batch == 2 and recording.frames == 3
    low, high = (end((1, 2, 3), keepdim=True) for end in (maps.amin, maps.amax))
    expected = ((maps - low) / (high - low)).flatten(0, 1)
    torch.testing.assert_close(heat(recording, [0], 4, 5), expected, rtol=1e-4, atol=1e-5)
