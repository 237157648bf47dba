from functools import cache
from math import prod

import comfy.model_management as management
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from steer.attention.attention_maps import heat
from steer.lab.comfy.runs import Noise, counted, encode, host_guider, noise_of, run, sampled, sigmas_of
from steer.lab.weights import CHECKPOINT
from steer.nodes.attention_maps import SteerAttentionHeatmap, SteerCaptureAttention, SteerInjectAttention, phrases_of
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.text import tokenized
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.pictures.heatmap import heatmap_picture, overlaid
from steer.tests import checks, oracles
from steer.tests.cases import in_pairs
from steer.tests.fuzz_inputs import PROMPT
from steer.tests.host_models import free_memory, hole, relative, split_rows

RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
LONG = ", ".join([RED] * 12)
BLOCKS = [("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 1), ("output", 2), ("output", 3)]
LAYER = "middle_block.1.transformer_blocks.0.attn2"
NODE = "SteerAttentionHeatmap"


def inputs(guider, noise, steps=4, sampler="euler", mask=None):
    """Of SamplerCustomAdvanced, and of SteerCaptureAttention."""
    latent = {"samples": torch.zeros_like(noise)} | ({} if mask is None else {"noise_mask": mask})
    return Noise(noise), guider, comfy.samplers.sampler_object(sampler), sigmas_of(guider.model_patcher, steps), latent


def capture(guider, noise, *args, keep=0.0, **kwargs):
    """(latent, recording)"""
    latent, recording = SteerCaptureAttention.execute(*inputs(guider, noise, *args, **kwargs), keep, keep).args
    return latent["samples"], recording


def guider_of(shapes, text=RED, negative="", cfg=3.0, model=None):
    return host_guider(model or shapes[0], encode(shapes[1], text), encode(shapes[1], negative), cfg)


def alike(a, b):
    """The largest difference of two recordings' maps, which are probabilities."""
    assert a.maps.keys() == b.maps.keys()
    return max(float((a.maps[grid] - b.maps[grid]).abs().max()) for grid in a.maps)


def hooked(model, seen):
    """A clone of the model whose cross-attention is computed here, in the open: `seen` gets the positive's maps."""

    def attention(q, k, v, options):
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        maps = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)  # (rows, heads, positions, tokens)
        for kind, rows in zip(options["cond_or_uncond"], maps.chunk(len(options["cond_or_uncond"])), strict=True):
            if kind == 0:
                seen.setdefault(tuple(options["activations_shape"][-2:]), []).append(rows)
        return (maps @ v).transpose(1, 2).flatten(2)

    model = model.clone()
    for block in BLOCKS:
        model.set_model_attn2_replace(attention, *block)
    return model


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (2, 18, 11)])
def test_the_recorded_average_is_that_of_an_own_computation(shapes, sampler, batch, height, width):
    noise, seen = noise_of((batch, 4, height, width)), {}
    _, recording = capture(guider_of(shapes), noise, sampler=sampler)
    sampled(*inputs(guider_of(shapes, model=hooked(shapes[0], seen)), noise, sampler=sampler))
    calls = {"euler": 4, "heun": 7}[sampler]
    assert {grid: len(maps) for grid, maps in seen.items()} == {
        (height, width): 3 * calls,
        (height // 2, -(-width // 2)): 4 * calls,
    }
    assert recording.maps.keys() == seen.keys() and recording.latent == (height, width) and recording.tokens == 77
    for grid, maps in seen.items():
        average = torch.stack(maps).mean((0, 2)).cpu()  # of calls and layers, and of heads
        assert recording.maps[grid].shape == (batch, grid[0] * grid[1], 77)
        assert (recording.maps[grid] - average).abs().max() < 1e-5
        assert (recording.maps[grid].sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("text", "negative"), [(RED, GREEN), (RED, LONG), (LONG, "")])
def test_maps_do_not_depend_on_how_the_host_runs_conditionings(shapes, monkeypatch, text, negative):
    """Together, contexts of 77 and 154 tokens are repeated to the same length; one by one they are not."""
    noise, recordings = noise_of((2, 4, 16, 16)), []
    for split in (False, True):
        split_rows(monkeypatch, shapes[0], split)
        model, rows = counted(shapes[0])
        recordings.append(capture(guider_of(shapes, text, negative, model=model), noise)[1])
        assert set(rows) == ({2} if split else {4})
    assert recordings[0].tokens == recordings[0].maps[16, 16].shape[-1] == (154 if text == LONG else 77)
    assert alike(*recordings) < 1e-5
    assert (recordings[0].maps[16, 16].sum(-1) - 1).abs().max() < 1e-5


def test_a_batch_of_two_equals_two_singles_not_square(shapes):
    noise = noise_of((2, 4, 16, 11))
    together = capture(guider_of(shapes), noise)[1]
    singles = [capture(guider_of(shapes), one)[1] for one in noise.split(1)]
    assert together.maps.keys() == {(16, 11), (8, 6)}
    for grid, maps in together.maps.items():
        assert (maps - torch.cat([one.maps[grid] for one in singles])).abs().max() < 1e-5
    heats = [heat(recording, [2], 128, 88) for recording in (together, *singles)]
    assert heats[0].shape == (2, 128, 88)
    assert (heats[0] - torch.cat(heats[1:])).abs().max() < 1e-3


def guiders(shapes):
    model, clip, _ = shapes
    red, green, empty = (encode(clip, text) for text in (RED, GREEN, ""))
    dual = Guider_DualCFG(model)
    dual.set_conds(red, green, empty)
    dual.set_cfg(2.0, 3.0)
    return {
        "CFGGuider": host_guider(model, red, empty, 3.0),
        "cfg 1": host_guider(model, red, empty, 1.0),
        "SteerCFGGuider": SteerCFGGuider.execute(model, red, green, 3.0, 0.0, 0.5, 0.7, empty)[0],
        "DualCFGGuider": dual,
    }


@pytest.mark.parametrize("kind, sampler, keep", in_pairs(["CFGGuider", "cfg 1", "SteerCFGGuider", "DualCFGGuider"],
                         ["euler", "heun", "dpmpp_2m_sde"], [0.0, 0.8]))  # fmt: skip
def test_capturing_changes_nothing(shapes, kind, sampler, keep):
    guider, noise = guiders(shapes)[kind], noise_of((1, 4, 16, 16))
    plain = sampled(*inputs(guider, noise, sampler=sampler))["samples"]
    captured, recording = capture(guider, noise, sampler=sampler, keep=keep)
    assert torch.equal(captured, plain)
    assert recording.maps.keys() == {(16, 16), (8, 8)} and bool(recording.terms) == (keep > 0)
    again = sampled(*inputs(guider, noise, sampler=sampler))["samples"]
    assert torch.equal(again, plain)


def kept_bytes(recording):
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors_of(recording)}
    return sum(storages.values())


def tensors_of(recording):
    return [*recording.maps.values(), *(x for term in recording.terms.values() for x in (term.q, term.k))]


@pytest.mark.parametrize(
    ("text", "batch", "sides", "sampler", "ends"),
    [
        (RED, 1, (16, 16), "euler", (0.8, 0.4)),
        (RED, 2, (18, 11), "heun", (0.3, 0.9)),
        (LONG, 3, (8, 8), "euler", (1.0, 0.0)),
        (RED, 1, (16, 16), "euler", (0.0, 0.7)),
        (RED, 1, (16, 16), "euler", (0.0, 0.0)),
        (RED, 2, (8, 12), "dpm_2", (0.8, 0.4)),
    ],
)
def test_what_it_says_is_what_it_keeps(shapes, caplog, text, batch, sides, sampler, ends):
    guider, noise = guider_of(shapes, text), noise_of((batch, 4, *sides))
    with caplog.at_level("INFO", "steer"):
        _, recording = SteerCaptureAttention.execute(*inputs(guider, noise, 6, sampler), *ends).args
    *first, (_, said) = [record.args for record in caplog.records if record.msg.startswith("attention of")]
    assert said * 2**20 == kept_bytes(recording) and bool(first) == (sampler == "dpm_2")


def test_keys_of_words_are_kept_once(shapes):
    _, recording = capture(guider_of(shapes), noise_of((2, 4, 16, 16)), steps=6, keep=1.0)
    keys = {}
    for (_, layer), term in recording.terms.items():
        keys.setdefault(layer, set()).add(term.k.data_ptr())
    assert {(layer[-5:], len(kept)) for layer, kept in keys.items()} == {("attn2", 1), ("attn1", 6)}


def test_the_words_of_another_part_of_the_run_are_kept_too(shapes):
    """A prompt that changes on the way, by the host's hooks on the text encoder or as here by a patch."""
    model, calls = shapes[0].clone(), []

    def patch(q, context, value, options):
        calls.append(options["sigmas"])
        return q, context * (1.0 if float(options["sigmas"][0]) > 1.0 else 0.5), value

    model.set_model_attn2_patch(patch)
    _, recording = capture(guider_of(shapes, model=model), noise_of((1, 4, 16, 16)), steps=6, keep=1.0)
    by_level = {sigma: term.k for (sigma, layer), term in recording.terms.items() if layer == LAYER}
    for sigma, k in by_level.items():
        torch.testing.assert_close(k, by_level[max(by_level)] * (1.0 if sigma > 1.0 else 0.5))
    assert calls and len({k.data_ptr() for k in by_level.values()}) == 2


def test_capturing_with_a_noise_mask(shapes):
    guider, noise, mask = guider_of(shapes), noise_of((1, 4, 16, 16)), hole()[:, 0]
    given = inputs(guider, noise, mask=mask)
    given[-1]["samples"] = noise_of((1, 4, 16, 16), seed=5)
    plain = sampled(*given)
    latent, recording = SteerCaptureAttention.execute(*given).args
    assert torch.equal(latent["samples"], plain["samples"]) and torch.equal(latent["noise_mask"], mask)
    assert recording.maps.keys() == {(16, 16), (8, 8)}


def test_the_source_of_prompt_to_prompt_attends_as_it_does_alone(shapes):
    model, clip, _ = shapes
    source, target, edit = SteerPromptEdit.execute(clip, RED, GREEN, "auto", "").args
    guider = SteerPromptToPromptGuider.execute(model, source, target, encode(clip, ""), 3.0, edit, 0.8, 0.4).args[0]
    noise = noise_of((1, 4, 16, 16))
    both, alone = capture(guider, noise)[1], capture(guider_of(shapes), noise)[1]
    for grid, maps in alone.maps.items():
        assert both.maps[grid].shape[0] == 2 and (both.maps[grid][:1] - maps).abs().max() < 1e-5
    for text in (RED, GREEN, "a (red:1.2) circle on a blue background"):
        picture, mask = SteerAttentionHeatmap.execute(both, clip, text, "circle, blue").args
        assert picture.shape[0] == 2 and mask.shape == (4, 128, 128)
    with pytest.raises(ValueError, match=f"SteerAttentionHeatmap: the captured run's prompt is '{RED}'"):
        SteerAttentionHeatmap.execute(both, clip, "a blue star", "star")


@pytest.mark.parametrize("source", [RED, LONG])
def test_edited_attention_is_recorded_as_it_was_edited(shapes, source):
    """A word that is turned off has no attention in the target, in any layer, and keeps it in the source."""
    model, clip, _ = shapes
    *prompts, edit = SteerPromptEdit.execute(clip, source, RED, "auto", "circle: 0").args
    guider = SteerPromptToPromptGuider.execute(model, *prompts, encode(clip, ""), 3.0, edit, 1.0, 0.4).args[0]
    noise = noise_of((1, 4, 16, 16))
    captured, recording = capture(guider, noise)
    assert torch.equal(captured, sampled(*inputs(guider, noise))["samples"])
    for maps in recording.maps.values():
        assert maps[1, :, 3].abs().max() == 0.0 and maps[0, :, 3].min() > 0.0 and maps[1, :, 2].min() > 0.0


def test_a_model_in_half_precision(shapes, monkeypatch):
    noise, full = noise_of((1, 4, 16, 16)), capture(guider_of(shapes), noise_of((1, 4, 16, 16)), keep=0.8)[1]
    monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: True)
    monkeypatch.setattr(management, "unet_manual_cast", lambda *args, **kwargs: None)
    half = comfy.sd.load_checkpoint_guess_config(
        str(CHECKPOINT), output_vae=False, output_clip=False, model_options={"dtype": torch.float16}
    )[0]
    recording = capture(guider_of(shapes, model=half), noise, keep=0.8)[1]
    assert {term.q.dtype for term in recording.terms.values()} == {torch.float16}
    assert all(maps.dtype == torch.float32 for maps in recording.maps.values())
    assert (recording.maps[16, 16].sum(-1) - 1).abs().max() < 1e-5
    assert 0 < alike(full, recording) < 0.02


class TestRefusals:
    """Before the first model call, and the model stays as it is."""

    def refused(self, guider, rows, message, **kwargs):
        with pytest.raises(ValueError, match=f"SteerCaptureAttention: .*{message}"):
            capture(guider, noise_of((1, 4, 16, 16)), **kwargs)
        assert not rows

    def test_two_positive_conditionings(self, shapes):
        model, rows = counted(shapes[0])
        two = encode(shapes[1], RED) + encode(shapes[1], GREEN)
        self.refused(host_guider(model, two, encode(shapes[1], ""), 3.0), rows, "2 positive conditionings")

    def test_an_area(self, shapes):
        model, rows = counted(shapes[0])
        ((text, options),) = encode(shapes[1], RED)
        area = [[text, {**options, "area": (8, 8, 0, 0), "strength": 1.0}]]
        self.refused(host_guider(model, area, encode(shapes[1], ""), 3.0), rows, "an area")

    def test_one_sigma(self, shapes):
        model, rows = counted(shapes[0])
        given = inputs(guider_of(shapes, model=model), noise_of((1, 4, 16, 16)))
        with pytest.raises(ValueError, match="SteerCaptureAttention: .*at least two"):
            SteerCaptureAttention.execute(*given[:3], given[3][:1], given[4])
        assert not rows

    def test_shares_out_of_range(self, shapes):
        model, rows = counted(shapes[0])
        self.refused(guider_of(shapes, model=model), rows, "cross_end is 1.5", keep=1.5)

    def test_a_model_without_cross_attention(self, shapes, monkeypatch):
        model, rows = counted(shapes[0])
        for block in (part for part in model.model.modules() if isinstance(part, BasicTransformerBlock)):
            monkeypatch.setitem(block._modules, "attn2", None)
        self.refused(guider_of(shapes, model=model), rows, "no cross-attention")

    def test_queries_that_do_not_fit(self, shapes, monkeypatch):
        """After one call, when it is known what one takes."""
        model, rows = counted(shapes[0])
        monkeypatch.setattr(management, "get_free_memory", free_memory(lambda: 1e6))
        guider = guider_of(shapes, model=model)
        with pytest.raises(ValueError, match="SteerCaptureAttention: .*lower cross_end and self_end"):
            capture(guider, noise_of((4, 4, 16, 16)), steps=20, keep=0.8)
        assert rows == [4, 4]  # with so little the host runs conditionings one by one
        assert capture(guider, noise_of((4, 4, 16, 16)), steps=4)[1].maps  # nothing but maps fits


@pytest.fixture(scope="module")
def recording(shapes):
    """Of two latents, not square."""
    with torch.inference_mode():
        return capture(guider_of(shapes), noise_of((2, 4, 16, 11)))[1]


def pictures(count=2, height=128, width=88):
    colours = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(colours, (height, width), mode="bilinear").movedim(1, -1)


class TestHeatmap:
    def test_the_masks_are_the_heat_of_each_word_sample_by_sample(self, shapes, recording):
        sheet, masks = SteerAttentionHeatmap.execute(recording, shapes[1], RED, "blue, Red Circle,a").args
        assert masks.shape == (6, 128, 88) and sheet.shape[0] == 2 and sheet.shape[-1] == 3
        positions = [6], [2, 3], [1, 5]  # of both `a`
        expected = torch.stack([heat(recording, list(at), 128, 88) for at in positions], 1).flatten(0, 1)
        assert torch.equal(masks, expected)
        assert torch.equal(masks.amin((1, 2)), torch.zeros(6)) and torch.equal(masks.amax((1, 2)), torch.ones(6))
        assert 0.0 <= sheet.min() and sheet.max() <= 1.0 and sheet.dtype == torch.float32

    def test_with_the_picture(self, shapes, recording):
        image = pictures()
        sheet, masks = SteerAttentionHeatmap.execute(recording, shapes[1], RED, "blue, red", image).args
        alone, same = SteerAttentionHeatmap.execute(recording, shapes[1], RED, "blue, red").args
        assert torch.equal(masks, same)
        assert sheet.shape[2] * 2 > alone.shape[2] * 2.7  # a cell more
        with_alpha = torch.cat([image, torch.zeros(2, 128, 88, 1)], -1)
        assert torch.equal(SteerAttentionHeatmap.execute(recording, shapes[1], RED, "blue, red", with_alpha)[0], sheet)
        first = sheet[:, 10:266, 10:186]  # the picture's cell, of 256 pixels
        enlarged = torch.nn.functional.interpolate(image.movedim(-1, 1), first.shape[1:3], mode="bicubic")
        assert (first - enlarged.movedim(1, -1))[:, 9:-9, 9:-9].abs().max() < 0.03  # off the round corners
        large = SteerAttentionHeatmap.execute(recording, shapes[1], RED, "red", pictures(2, 256, 176))[1]
        assert large.shape == (2, 256, 176)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (RED, ["red", "circle", "blue", "background"]),
            ("a cat, the CAT's 2 (hats:1.2)!", ["cat", "2", "hats"]),
            ("of the", ["of", "the"]),
        ],
    )
    def test_without_words_all_that_say_something_once(self, shapes, text, words):
        assert phrases_of(tokenized(shapes[1], text), " ,") == words
        assert all(tokenized(shapes[1], text).positions(word) for word in words)

    def test_what_is_asked_for_is_shown_in_that_order(self, shapes):
        assert phrases_of(tokenized(shapes[1], RED), "Circle,, a red\nblue") == ["Circle", "a red", "blue"]

    @pytest.mark.parametrize(
        ("text", "words", "message"),
        [
            (RED, "square", "'square'.*its words are: a, red, circle"),
            (LONG, "circle", "has 77 tokens and this text 154"),
            ("", "", "no words"),
            ("!", "", "no words"),
        ],
    )
    def test_words_and_text_that_do_not_fit(self, shapes, recording, text, words, message):
        with pytest.raises(ValueError, match=f"{NODE}: .*{message}"):
            SteerAttentionHeatmap.execute(recording, shapes[1], text, words)

    @pytest.mark.parametrize("size", [(1, 128, 88), (3, 128, 88), (2, 128, 128), (2, 88, 128)])
    def test_pictures_of_another_run(self, shapes, recording, size):
        with pytest.raises(ValueError, match=f"{NODE}: image is {size[0]} of {size[2]}x{size[1]}.*2 of 88x128"):
            SteerAttentionHeatmap.execute(recording, shapes[1], RED, "red", pictures(*size))


class TestPicture:
    def heats(self, words, height=64, width=64):
        return np.linspace(0, 1, words * height * width, dtype=np.float32).reshape(words, height, width)

    def test_small_cells_are_enlarged_and_large_ones_are_not_endless(self):
        sizes = {side: heatmap_picture(self.heats(1, side, side), ["x"]).shape for side in (64, 256, 400, 1024)}
        assert sizes[64] == sizes[256] and 256 < sizes[256][1] < sizes[400][1] < sizes[1024][1] < 600

    def test_the_aspect_is_kept(self):
        wide, high = (heatmap_picture(self.heats(1, *size), ["x"]) for size in ((64, 128), (128, 64)))
        assert wide.shape[1] > 1.6 * wide.shape[0] and high.shape[1] < 0.6 * high.shape[0]

    def test_many_words_go_on_in_the_next_line(self):
        eight, nine = (heatmap_picture(self.heats(count), ["x"] * count) for count in (8, 9))
        assert eight.shape[1] == nine.shape[1] and 1.8 < nine.shape[0] / eight.shape[0] < 2.0

    @pytest.mark.parametrize("word", ["i", "extraordinarily", "a phrase of far too many words to fit below a picture"])
    def test_every_word_fits_under_its_cell(self, word):
        sheet = heatmap_picture(self.heats(3), ["", word, ""])
        below = sheet[sheet.shape[0] - 30 :].max(-1) > 0.5
        columns = np.nonzero(below.any(0))[0]
        third = sheet.shape[1] / 3
        assert len(columns) and third - 6 < columns.min() and columns.max() < 2 * third + 6

    def test_colours_grow_lighter_with_the_heat(self):
        ramp = overlaid(np.linspace(0, 1, 100)[None], None)[0] @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(ramp) > 0).all() and ramp[0] < 0.01 and ramp[-1] > 0.9

    def test_where_it_is_cold_the_picture_is_seen_dimmed_and_pale(self):
        picture = np.zeros((2, 2, 3))
        picture[0] = 1.0, 0.0, 0.0
        cold, hot = (overlaid(np.full((2, 2), heat), picture) for heat in (0.0, 1.0))
        assert (cold[0] > cold[1]).all() and cold.max() < 0.5 and np.ptp(cold[0, 0]) < 0.3
        assert (hot > cold).all()


@cache
def captured_on(family):
    """(positive, edit, the latent sampled, what was captured)"""
    with torch.inference_mode():
        positive, _, edit = oracles.prompts_for_attention(family)
        guider = host_guider(family.model(), positive, family.prompt(""), 3.0)
        latent, attention = SteerCaptureAttention.execute(
            Noise(oracles.noise_for(family)),
            guider,
            oracles.EULER,
            sigmas_of(family.model(), 4),
            {"samples": torch.zeros(family.shape)},
        ).args
        return positive, edit, latent["samples"], attention


def capture_on_family(family):
    positive, _, sampled, attention = captured_on(family)
    assert torch.equal(sampled, oracles.alone(family, positive))
    for maps in attention.maps.values():
        mass = maps.float().sum(-1)  # in a joint layer the picture has its part of each place's attention
        assert mass.min() > 0.0 and mass.max() < 1.0 + 1e-2 and (attention.grainy or mass.min() > 1.0 - 1e-2)


def inject_on_family(family):
    *_, attention = captured_on(family)
    source, target, edit = oracles.prompts_for_attention(family)
    model = SteerInjectAttention.execute(family.model(), attention, edit, 0.8, 0.4).args[0]
    guider = SteerPromptToPromptGuider.execute(
        family.model(), source, target, family.prompt(""), 3.0, edit, 0.8, 0.4
    ).args[0]
    second = run(guider, oracles.EULER, sigmas_of(family.model(), 4), oracles.noise_for(family)).chunk(2)[1]
    assert relative(oracles.alone(family, target, model), second) < 1e-3


def heatmap_on_family(family):
    *_, attention = captured_on(family)
    picture, maps = SteerAttentionHeatmap.execute(attention, family.clip(), oracles.SOURCE, "red, circle").args
    assert picture.shape[0] == attention.frames and maps.shape == (2 * attention.frames, 64, 64)
    assert maps.min() >= 0 and 0.5 < maps.max() <= 1


def check_captured(world, given, run, output):
    latent, attention = output
    result = {name: given[name] for name in ("guider", "sampler", "sigmas", "latent_image")}
    checks.check_sampled(**result, result=latent)
    for grid, maps in attention.maps.items():
        assert maps.shape[1:] == (prod(grid), attention.tokens)
        assert torch.isfinite(maps).all()
        if not checks.two_prompts(given["guider"]) and not attention.grainy:
            torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:2]), rtol=0, atol=1e-3)


def check_injected(world, given, run, output):
    run = dict(run)
    positive, negative = run.pop("positive"), world.usual["CONDITIONING"]["empty"]
    checks.run_by_host(run, output[0], given["model"], positive, negative)


def check_heatmap(world, given, run, output):
    picture, masks = output
    attention = given["attention"]
    height, width = (8 * side for side in attention.latent[-2:])
    if given.get("image") is not None:
        height, width = given["image"].shape[1:3]
    checks.check_picture(picture, attention.batch * attention.frames, *picture.shape[1:3])
    checks.check_mask(masks, height, width)


ORACLE = {
    "SteerCaptureAttention": (
        "the same latent bit for bit; at each place the words' attention adds up to 1, or less beside the picture's",
        capture_on_family,
    ),
    "SteerInjectAttention": ("the target as sampled beside its source", inject_on_family),
    "SteerAttentionHeatmap": ("a row for each picture or frame, a map for each word, from 0 to 1", heatmap_on_family),
}
CHECK = {
    "SteerCaptureAttention": (check_captured, ()),
    "SteerInjectAttention": (check_injected, (*checks.RUN, "positive")),
    "SteerAttentionHeatmap": (check_heatmap, ()),
}
USUAL = {
    "SteerAttentionHeatmap": {"text": (PROMPT,), "words": ("circle", "", "red circle, blue")},
}
