"""Attention of transformers: each family's own layers, seen and edited, against the same written out."""

import inspect
import re
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import comfy.model_management as management
import comfy.samplers
import pytest
import torch
from comfy import model_base, supported_models
from comfy.ldm.modules import attention as host_attention
from steer.attention import core
from steer.attention.attention_maps import heat
from steer.attention.paint_with_words import JOINT, Painting, Region
from steer.attention.prompt_to_prompt import Edit
from steer.lab.comfy.runs import (
    Noise,
    host_guider,
    interrupted,
    noise_of,
    run,
    sigmas_of,
    with_pytorch_attention,
)
from steer.nodes.attention_maps import SteerAttentionHeatmap, SteerCaptureAttention, SteerInjectAttention
from steer.nodes.host.attention import AttentionEdits, Mark, transformer, with_marked_edits
from steer.nodes.host.attention.families import REFUSED, TRANSFORMERS, UNETS, family_of
from steer.nodes.host.gradients.model import Differentiable
from steer.nodes.host.gradients.tensors import gradients
from steer.nodes.host.law import noise_law
from steer.nodes.runs.paint_with_words import Painted, PaintingMark, with_painting
from steer.nodes.runs.prompt_to_prompt import PromptToPromptGuider
from steer.tests.cases import checkered
from steer.tests.families import FAMILIES
from steer.tests.host_models import relative, split_rows
from steer.tests.tiny_transformers import TEXT, TINY, deeper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EULER = comfy.samplers.sampler_object("euler")
BACK_ENDS = ["pytorch", "basic", "split", "sub_quad"]
FLOW = torch.tensor([0.7, 0.0])


@pytest.fixture(params=TINY, ids=str)
def tiny(request):
    request.param.model()  # skips where this host has none
    return request.param


def sampled(tiny, model, positive=None, sigmas=None, batch=1, seed=0):
    guider = host_guider(model, positive or tiny.conditioning(), tiny.conditioning(2), 3.0)
    sigmas = sigmas_of(model, 2) if sigmas is None else sigmas
    return run(guider, EULER, sigmas, noise_of((batch, *tiny.shape[1:]), seed))


class Watched(Mark):
    """Sees the layers under the conditionings that ask for it, and changes nothing unless told to."""

    key = "watched"

    def __init__(self, see):
        self.see = see

    def edit(self, value):
        return self

    def check(self, conds, noise, sigmas):
        pass

    def acts(self, kind, sigma):
        return kind != "self"

    def apply(self, rows, site):
        return self.see(rows, site)


def watched(tiny, see, model=None):
    """A clone of the model, and the conditioning whose rows are seen."""
    return with_marked_edits(model or tiny.model(), "Test", Watched(see)), tiny.conditioning(watched=True)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


class TestNothingChanged:
    """A run in which layers are seen, and nothing is edited."""

    def test_it_is_the_plain_run_and_every_layer_is_met_once(self, tiny):
        seen = []
        model, positive = watched(tiny, lambda rows, site: seen.append(site))
        plain, options = sampled(tiny, tiny.model()), repr(model.model_options)
        for _ in range(2):
            assert torch.equal(sampled(tiny, model, positive), plain)
            assert hooks_of(model) == 0 and repr(model.model_options) == options
        assert [site.layer for site in seen] == list(tiny.layers) * 4
        for site in seen:
            assert site.grid == tiny.grid and site.latent == tiny.shape[2:]
            assert site.words == slice(tiny.words, tiny.words + tiny.own)
            picture = None if tiny.picture is None else slice(tiny.picture, tiny.picture + tiny.positions)
            assert site.picture == picture and site.kind == ("joint" if picture else "cross")
        assert torch.equal(sampled(tiny, tiny.model()), plain)

    def test_an_error_leaves_nothing(self, tiny):
        def broken(rows, site):
            if site.layer == tiny.layers[1]:
                raise RuntimeError("broken")

        plain = sampled(tiny, tiny.model())
        with pytest.raises(RuntimeError, match="broken"):
            sampled(tiny, *watched(tiny, broken))
        assert hooks_of(tiny.model()) == 0 and torch.equal(sampled(tiny, tiny.model()), plain)

    def test_an_interrupt_leaves_nothing(self, tiny):
        plain, (model, calls) = sampled(tiny, tiny.model()), interrupted(tiny.model(), 1)
        with pytest.raises(management.InterruptProcessingException):
            sampled(
                tiny, *watched(tiny, lambda rows, site: management.throw_exception_if_processing_interrupted(), model)
            )
        assert calls and hooks_of(model) == 0
        assert torch.equal(sampled(tiny, tiny.model()), plain)


def explicit(tiny, look=None, w=None, factor=0.0):
    """The host's attention written out in float64, in an override of its own: the family's layers by their lengths.

    `w` (batch, positions, words) is painted on the positive's rows; `look(q, k, maps)` gets what is attended to.
    """

    def override(function, q, k, v, heads, mask=None, **options):
        whole = options.get("skip_reshape", False)
        lengths = (q.shape[2], k.shape[2]) if whole else (q.shape[1], k.shape[1])
        if lengths != (tiny.positions if tiny.picture is None else tiny.columns, tiny.columns):
            return function(q, k, v, heads, mask=mask, **options)
        q, k, v = (
            x.double() if whole else x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2).double() for x in (q, k, v)
        )
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        first = tiny.picture or 0
        rows, columns = slice(first, first + tiny.positions), slice(tiny.words, tiny.words + tiny.own)
        logits = q @ k.mT
        uuids = options["transformer_options"]["cond_or_uncond"]
        for which, part in zip(uuids, logits.chunk(len(uuids)), strict=True):
            block = part[:, :, rows, columns]
            if which == 0 and w is not None:
                weight = factor if tiny.picture is None else JOINT * factor
                block += weight * w[:, None] * block.amax((1, 2, 3), keepdim=True).clamp_min(0.0)
        maps = (logits / q.shape[-1] ** 0.5 + (0.0 if mask is None else mask.double())).softmax(-1)
        for which, part in zip(uuids, maps.chunk(len(uuids)), strict=True):
            if which == 0 and look is not None:
                look(part[:, :, rows, columns])
        out = (maps @ v).float()
        return out if options.get("skip_output_reshape", False) else out.transpose(1, 2).flatten(2)

    return override


def overridden(model, override):
    """A clone of the model with this attention override."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = override
    return model


def places(tiny, batch):
    """w of two words, (batch, positions, own), and regions whose masks have it: one of each picture, or frame."""
    words, regions = torch.zeros(batch, tiny.positions, tiny.own), []
    count = tiny.frames if tiny.frames > 1 else batch
    for column, phrase in enumerate(("aa", "ab")):
        mask = (noise_of((count, *tiny.grid[-2:]), column) > 0.3).float()
        place = mask.reshape(1, -1).expand(batch, -1) if tiny.frames > 1 else mask.flatten(1)
        words[:, :, column] = 0.5 * place
        if tiny.clip > tiny.frames:  # patches of several frames
            mask = mask.repeat_interleave(-(-tiny.clip // tiny.frames), 0)[: tiny.clip]
        pixels = mask.repeat_interleave(14, 1).repeat_interleave(16, 2)
        height, width = (8 * side for side in tiny.shape[-2:])
        regions.append(
            Region(torch.nn.functional.interpolate(pixels[None], (height, width), mode="nearest")[0], phrase, 0.5)
        )
    return words, tuple(regions)


def painted(tiny, regions, weight=2.0, model=None):
    positive = tiny.conditioning(**{PaintingMark.key: Painting(regions, tiny.prompt, weight)})
    return with_painting(model or tiny.model(), "Test"), positive


MIXERS = {
    "Lumina 2": "noise_refiner.0.attention.out", "Z-Image": "noise_refiner.0.attention.out",
    "OmniGen2": "noise_refiner.0.attn.to_out.0", "Boogu": "noise_refiner.0.attn.to_out.0",
    "Wan": "blocks.0.self_attn.o", "Wan with a picture": "blocks.0.self_attn.o",
    "LTX-Video": "transformer_blocks.0.attn1.to_out.0", "Cosmos-Predict2": "blocks.0.self_attn.output_proj",
    "Z-Image of pixels": "noise_refiner.0.attention.out", "Cosmos": "blocks.block0.blocks.0.block.attn.to_out.0",
    **{f"Wan {kind}": "blocks.0.self_attn.o" for kind in ("VACE", "Camera", "Camera with a picture", "Animate")},
    "HuMo": "blocks.0.self_attn.o", "Anima": "blocks.0.self_attn.output_proj",
    "Kandinsky 5": "visual_transformer_blocks.0.self_attention.out_layer",
}  # fmt: skip
"""What brings places together before the first layer that is seen."""


class TestPlaces:
    """Where a latent's patches and a text's tokens are, asked of the network."""

    def first(self, tiny, noise, positive):
        """The first layer's queries and keys of the positive's rows."""
        seen = []
        model, _ = watched(tiny, lambda rows, site: seen.append(rows[0].terms[0]))
        run(host_guider(model, positive, tiny.conditioning(2), 3.0), EULER, FLOW, noise)
        return seen[0]

    def test_a_patch_is_where_its_queries_change(self, tiny, monkeypatch):
        if tiny.name in MIXERS:
            layer = tiny.model().model.diffusion_model.get_submodule(MIXERS[tiny.name])
            for name, weight in layer.named_parameters():
                monkeypatch.setitem(layer._parameters, name, torch.nn.Parameter(torch.zeros_like(weight), False))
        noise, place = noise_of(tiny.shape), tuple(side - 2 for side in tiny.grid[-2:])
        other, sides = noise.clone(), [-(-side // of) for side, of in zip(tiny.shape[-2:], tiny.grid[-2:], strict=True)]
        frames = () if len(tiny.grid) == 2 else (tiny.frames - 1,)
        of_latent = (tiny.shape[2] - 1,) if frames else ()
        other[(0, slice(None), *of_latent, *(at * side for at, side in zip(place, sides, strict=True)))] += 1.0
        positive = tiny.conditioning(watched=True)
        before, after = (self.first(tiny, x, positive).q for x in (noise, other))
        assert before.shape[2] == tiny.positions
        changed = (before != after).any(3).any(1)[0].unflatten(0, tiny.grid)
        assert changed.nonzero().tolist() == [[*frames, *place]]

    def test_a_token_is_where_its_keys_change(self, tiny):
        if tiny.mixed:
            pytest.skip("text goes through layers of its own before")
        positive, noise = tiny.conditioning(watched=True), noise_of(tiny.shape)
        before = self.first(tiny, noise, positive).k
        positive[0][0][:, 7] += 1.0
        after = self.first(tiny, noise, positive).k
        changed = (before != after).any(3).any(1)[0]
        assert changed.nonzero().flatten().tolist() == [tiny.words + 7]


class TestPaintWithWords:
    @pytest.mark.parametrize("tiny, split", checkered(TINY, [False, True]), ids=str, indirect=["tiny"])
    def test_it_is_the_papers_line_with_every_map_in_the_open(self, tiny, monkeypatch, split):
        split_rows(monkeypatch, tiny.model(), split)
        w, regions = places(tiny, 2)
        sampling = tiny.model().get_model_object("model_sampling")
        sigmas = torch.tensor([min(0.6 * float(sampling.sigma_max), 10.0), 0.0])
        factor = Painting(regions, tiny.prompt, 2.0).factor(float(sigmas[0]), noise_law(sampling).flow)
        expected = sampled(tiny, overridden(tiny.model(), explicit(tiny, None, w, factor)), sigmas=sigmas, batch=2)
        plain = sampled(tiny, overridden(tiny.model(), explicit(tiny)), sigmas=sigmas, batch=2)
        out = sampled(tiny, *painted(tiny, regions), sigmas=sigmas, batch=2)
        rounding = relative(plain, sampled(tiny, tiny.model(), sigmas=sigmas, batch=2))  # of the same attention
        assert relative(out, expected) < 1e-5 + 3 * rounding < 3e-4 < 1e-3 < relative(plain, expected)

    def test_weight_0_is_the_plain_run_bit_for_bit(self, tiny):
        _, regions = places(tiny, 1)
        assert torch.equal(sampled(tiny, *painted(tiny, regions, 0.0)), sampled(tiny, tiny.model()))

    @pytest.mark.parametrize("tiny, back_end", checkered(TINY, BACK_ENDS), ids=str, indirect=["tiny"])
    def test_it_is_the_same_through_every_back_end_and_round_another_override(self, tiny, back_end):
        calls, function = [], getattr(host_attention, f"attention_{back_end}")

        def previous(_, *args, **kwargs):
            calls.append(args[0].shape)
            return function(*args, **kwargs)

        _, regions = places(tiny, 1)
        plain = sampled(tiny, overridden(tiny.model(), previous))
        count = len(calls)
        out = sampled(tiny, *painted(tiny, regions, model=overridden(tiny.model(), previous)))
        rounding = relative(plain, sampled(tiny, tiny.model()))
        assert relative(out, sampled(tiny, *painted(tiny, regions))) < 1e-4 + 3 * rounding < 1e-2
        assert count and len(calls) >= 2 * count

    @pytest.mark.parametrize("name", ["Flux", "Lumina 2", "Wan"])
    def test_no_map_of_the_picture_is_made(self, monkeypatch, name):
        """Nor where heat is; that what makes one is seen, and a bias of all rows where it is not cut into parts."""
        tiny = larger(next(tiny for tiny in TINY if tiny.name == name))
        model, joint = with_pytorch_attention(tiny.model()), tiny.picture is not None

        def maps(work):
            wide = (shape for shape in shapes_in(work) if shape[-2] >= tiny.positions)
            return {shape for shape in wide if shape[-1] in (tiny.positions, tiny.columns if joint else None)}

        def paint():
            sampled(tiny, *painted(tiny, places(tiny, 1)[1], model=model))

        def basic(_, *args, **kwargs):
            return host_attention.attention_basic(*args, **kwargs)

        plain = maps(lambda: sampled(tiny, model))  # as wide, but not of places by places
        assert maps(lambda: sampled(tiny, overridden(tiny.model(), basic))) > plain
        assert maps(paint) - plain == ({(1, 1, tiny.positions, tiny.columns)} if joint else set())
        monkeypatch.setattr(core, "AT_ONCE", 2**13)
        assert maps(paint) == maps(lambda: captured(tiny, model)) == plain


class _Shapes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.shapes |= {tuple(x.shape) for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.ndim > 1}
        return out


def shapes_in(work) -> set[tuple[int, ...]]:
    """Of every tensor that comes up."""
    with _Shapes() as mode:
        work()
    return mode.shapes


def larger(tiny):
    """The same on a latent of 12 x 16 patches."""
    sides = [-(-side // of) for side, of in zip(tiny.shape[-2:], tiny.grid[-2:], strict=True)]
    grid = (*tiny.grid[:-2], 12, 16)
    shape = (*tiny.shape[:-2], 12 * sides[0], 16 * sides[1])
    more = prod(grid) - tiny.positions
    if tiny.picture is None:
        return replace(tiny, shape=shape, grid=grid)
    columns = 32 + prod(grid) if tiny.name.startswith("Z-Image") else tiny.columns + more
    return replace(tiny, shape=shape, grid=grid, columns=columns, words=tiny.words + more * (tiny.picture == 0))


def captured(tiny, model=None, batch=1, steps=2):
    """(latent, recording)"""
    model = model or tiny.model()
    guider = host_guider(model, tiny.conditioning(), tiny.conditioning(2), 3.0)
    latent = {"samples": torch.zeros((batch, *tiny.shape[1:]))}
    noise = Noise(noise_of(latent["samples"].shape))
    latent, recording = SteerCaptureAttention.execute(noise, guider, EULER, sigmas_of(model, steps), latent).args
    return latent["samples"], recording


class TestHeatmap:
    def test_the_recorded_average_is_that_of_maps_in_the_open_and_the_run_the_plain_one(self, tiny):
        seen = []
        plain = sampled(tiny, tiny.model(), batch=2)
        latent, recording = captured(tiny, batch=2)
        assert torch.equal(latent, plain) and hooks_of(tiny.model()) == 0
        sampled(tiny, overridden(tiny.model(), explicit(tiny, seen.append)), batch=2)
        assert len(seen) == 2 * len(tiny.layers)
        maps = torch.stack(seen).mean((0, 2))
        assert (
            set(recording.maps) == {tiny.grid} and recording.tokens == tiny.own + tiny.left_out and not recording.terms
        )
        assert recording.batch == 2 and recording.frames == tiny.clip
        torch.testing.assert_close(recording.maps[tiny.grid][..., : tiny.own], maps.float(), rtol=1e-3, atol=1e-4)

    def test_a_word_is_found_where_it_was_planted(self, tiny, monkeypatch):
        tiny = larger(tiny)
        place = torch.zeros(tiny.frames, 12, 16, dtype=torch.bool)
        place[-1, 3:9, 8:15] = True
        rows, original = place.flatten().nonzero().flatten() + (tiny.picture or 0), transformer._Running.__call__

        def planted(self, function, q, k, v, heads, *args, **kwargs):
            if self.layer:
                q, k = torch.zeros_like(q), torch.zeros_like(k)
                of_q, of_k = (x if x.ndim == 4 else x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k))
                of_q[:, :, rows, 0], of_k[:, :, tiny.words + 4, 0] = 8.0, 8.0
            return original(self, function, q, k, v, heads, *args, **kwargs)

        monkeypatch.setattr(transformer._Running, "__call__", planted)
        heats = heat(captured(tiny)[1], [4], 12, 16)
        other = heat(captured(tiny)[1], [5], 12, 16)
        place = place.repeat_interleave(-(-tiny.clip // tiny.frames), 0)[: tiny.clip]
        hot = heats > 0.5
        assert hot.shape == place.shape and (hot & place).sum() / (hot | place).sum() > 0.85
        assert other[place].mean() < other[~place].mean()

    def test_it_is_the_painted_attention_that_is_seen(self, tiny):
        w, regions = places(tiny, 1)
        (model, positive), place = painted(tiny, regions[:1], 6.0), w[0, :, 0] > 0
        guider = host_guider(model, positive, tiny.conditioning(2), 3.0)
        noise, sigmas = Noise(noise_of((1, *tiny.shape[1:]))), sigmas_of(model, 1)
        latent = {"samples": torch.zeros((1, *tiny.shape[1:]))}
        seen = SteerCaptureAttention.execute(noise, guider, EULER, sigmas, latent)[1].maps[tiny.grid][0, :, 0]
        plain = captured(tiny, steps=1)[1].maps[tiny.grid][0, :, 0]
        assert seen[place].mean() > 1.2 * plain[place].mean()
        assert seen[~place].mean() < seen[place].mean()


@pytest.fixture(scope="module")
def attention():
    """What Wan's two latent frames attended to, which are five pictures, and the text encoder."""
    family = next(family for family in FAMILIES if family.name == "video (Wan)")
    with torch.inference_mode():
        guider = host_guider(family.model(), family.prompt("a red circle"), family.prompt(""), 3.0)
        given = Noise(noise_of(family.shape)), guider, EULER, sigmas_of(family.model(), 2)
        return SteerCaptureAttention.execute(*given, {"samples": torch.zeros(family.shape)})[1], family.clip()


class TestVideo:
    def test_a_row_for_each_frame(self, attention):
        recording, clip = attention
        sheet, masks = SteerAttentionHeatmap.execute(recording, clip, "a red circle", "red, circle").args
        assert sheet.shape[0] == 2 and masks.shape == (4, 64, 64)
        assert all(masks[word::2].min() == 0.0 and masks[word::2].max() == 1.0 for word in (0, 1))  # over both frames

    @pytest.mark.parametrize("count, frames", [(2, (0, 1)), (5, (0, 1, 1, 1, 1))])
    def test_a_row_for_each_picture(self, attention, count, frames):
        recording, clip = attention
        alone = SteerAttentionHeatmap.execute(recording, clip, "a red circle", "circle")[1]
        pictures = torch.rand(count, 64, 64, 3)
        sheet, masks = SteerAttentionHeatmap.execute(recording, clip, "a red circle", "circle", pictures).args
        assert sheet.shape[0] == count and torch.equal(masks, alone[list(frames)])

    @pytest.mark.parametrize("size", [(1, 64, 64), (5, 64, 128)])
    def test_pictures_of_another_run(self, attention, size):
        recording, clip = attention
        with pytest.raises(
            ValueError, match="SteerAttentionHeatmap: image is .*, the captured run 1 of 2 frames of 64x64"
        ):
            SteerAttentionHeatmap.execute(recording, clip, "a red circle", "circle", torch.rand(*size, 3))


DEEP = [
    ("Flux", {"depth": 6, "depth_single_blocks": 6}, {"guidance": torch.tensor([3.5])}),  # layers by themselves
    ("Wan", {"num_layers": 12}, {}),  # blocks that hold a layer
    ("SD3", {}, {}),  # parts of layers
]


@pytest.mark.parametrize("name, config, conds", DEEP, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_computed_again_on_the_way_back_is_painted_too(name, config, conds):
    """The gradient by x of a painted estimate, with its activations kept and not."""
    tiny = next(tiny for tiny in TINY if tiny.name == name)
    model, device = deeper(tiny, config), management.get_torch_device()
    drawn = noise_of((1, TEXT, tiny.width), 1), noise_of(tiny.shape), noise_of((1, 32), 2)
    (text, x, pooled), sigma = (x.to(device) for x in drawn), torch.tensor([0.6], device=device)
    edit = Painted(Painting(places(tiny, 1)[1], tiny.prompt, 2.0), True)
    edits = AttentionEdits(model.model).on([{"uuid": "own", "cross_attn": text}], edit)
    results = []
    for recompute, model_options in ((False, {}), (False, edits.options({})), (True, edits.options({}))):
        differentiable = Differentiable(model, recompute)
        management.load_models_gpu([differentiable.patcher])
        options = differentiable.options(model_options)["transformer_options"] | {"uuids": ["own"], "sigmas": sigma}
        with gradients():
            asked, network = x.clone().requires_grad_(), differentiable.patcher.model
            given = {"c_crossattn": text.clone(), "y": pooled.clone(), "transformer_options": options}
            given |= {key: value.to(device) for key, value in conds.items()}
            out = differentiable(lambda: network.apply_model(asked, sigma, **given))  # noqa: B023
            results.append(torch.autograd.grad(out.square().sum(), asked)[0])
        assert hooks_of(model) == 0
    plain, kept, again = results
    assert relative(again, kept) < 1e-4 < 1e-2 < relative(plain, kept)


class TestRefusals:
    """Each says why, and those that can be told without the model do so before its first call."""

    @pytest.mark.parametrize("network, family", [(network, family) for network, (family, _) in REFUSED.items()])
    def test_families_out_of_reach(self, network, family):
        model = SimpleNamespace(diffusion_model=type(network, (torch.nn.Module,), {})())
        with pytest.raises(ValueError, match=f"the model is {family}, and .*; the attention nodes work on UNets"):
            AttentionEdits(model)

    def test_families_that_are_not_known_get_the_names_of_those_that_are(self):
        with pytest.raises(ValueError, match="SimpleNamespace has no cross-attention blocks to edit; .*; Qwen-Image; "):
            AttentionEdits(SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))

    def test_two_prompts(self, tiny):
        with pytest.raises(ValueError, match="is a transformer, and Prompt-to-Prompt works on UNets"):
            PromptToPromptGuider("Test", tiny.model(), None, None, 3.0, None)
        size = tiny.own
        edit = Edit(tiny.prompt, tiny.prompt, torch.eye(size), torch.ones(size), torch.ones(size))
        with pytest.raises(
            ValueError, match="SteerInjectAttention: .* is a transformer, and Prompt-to-Prompt works on"
        ):
            SteerInjectAttention.execute(tiny.model(), captured(tiny, steps=1)[1], edit, 0.8, 0.4)

    def test_a_picture_beside_the_picture(self):
        """HiDream-E1's: the places of what is edited stand in rows with those of what is made."""
        tiny = next(tiny for tiny in TINY if tiny.name == "HiDream")
        positive = tiny.conditioning(watched=True, concat_latent_image=noise_of(tiny.shape))
        model, _ = watched(tiny, lambda rows, site: None)
        with pytest.raises(ValueError, match="attends from 69 to 69 places in 1 rows, and from 49 to 49"):
            sampled(tiny, model, positive)
        assert hooks_of(model) == 0

    def test_two_calls_that_cannot_be_told_apart(self):
        """Wan's model for pictures without one: it attends to the text twice."""
        tiny = next(tiny for tiny in TINY if tiny.name == "Wan with a picture")
        positive = [[tiny.conditioning()[0][0], {"watched": True}]]
        model, _ = watched(tiny, lambda rows, site: None)
        with pytest.raises(ValueError, match="blocks.0.cross_attn attends from 30 to 11 places"):
            sampled(tiny, model, positive)


NO_WORDS = {
    "Hunyuan3Dv2", "HunYuanDiTPlain", "Trellis2", "LatentSeqMMFlowModel", "NaDiT", "RTv4", "DepthAnything3Net",
    "SAM3Model",
}  # fmt: skip
"""Networks that get no text: of three-dimensional things, enlargers, and what finds things in pictures."""


def test_every_network_of_the_host_has_a_verdict():
    """Each is served, refused with its reason, or gets no text."""
    source = inspect.getsource(model_base)
    networks = {name.rpartition(".")[2] for name in re.findall(r"unet_model=([\w.]*\w)", source)} - {"unet_model"}
    assert len(networks) > 25 and "Flux" in networks
    known = {UNETS.network, *REFUSED, *NO_WORDS}.union(*(family.network.split() for family in TRANSFORMERS))
    assert networks <= known


def test_every_record_is_tried():
    """On each of its networks; those that this host has no model of are left out."""
    networks = [tiny.model().model.diffusion_model for tiny in TINY if hasattr(supported_models, tiny.kind)]
    tried = {(family_of(network), type(network).__name__) for network in networks}
    every = {(family, network) for family in TRANSFORMERS for network in family.network.split()}
    assert tried == every if all(hasattr(supported_models, tiny.kind) for tiny in TINY) else tried < every


def test_the_layers_that_show_words_best():
    """Of models of the published depths, the papers' numbers; else from 0.3 to 0.6 of the depth, of few all."""
    by_name = {family.name: family for family in TRANSFORMERS}
    flux = [*(f"double_blocks.{n}" for n in range(19)), *(f"single_blocks.{n}" for n in range(38))]
    heated = by_name["Flux.1, Kontext, Flux.2, Klein, LongCat"].heated(flux)
    assert heated == [f"double_blocks.{n}" for n in (11, 12, 14, 17, 18)]
    blocks = [f"joint_blocks.{n}" for n in range(38)]
    assert by_name["SD3, SD3.5 Large"].heated(blocks) == [blocks[n] for n in (16, 18, 20, 21, 24)]
    assert by_name["Qwen-Image"].heated([str(n) for n in range(60)]) == [str(n) for n in range(18, 36)]
    assert (
        by_name["Wan 2.1 and 2.2, VACE, Camera, HuMo"].heated(["0"]) == ["0"]
        and by_name["Qwen-Image"].heated(blocks[:6]) == blocks[:6]
    )
