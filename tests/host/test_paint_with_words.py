import types
from math import log1p

import comfy.samplers
import comfy_extras.nodes_custom_sampler
import node_helpers
import nodes
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from steer.attention.paint_with_words import LARGEST_RATIO
from steer.lab.comfy.random_models import tiny_sdxl
from steer.lab.comfy.runs import counted, encode, host_guider, noise_of, run, sigmas_of
from steer.lab.world.reader import read_image
from steer.nodes.attention_maps import SteerCaptureAttention
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.host.attention.unet import attention_sites
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion, SteerRegionsFromSegmentation
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.tests import checks, oracles
from steer.tests.fuzz_inputs import PROMPT
from steer.tests.host_models import EPS, FLOW, ON_GPU, V, relative, split_rows, with_control, with_law, with_lora

TEXT = "a red circle on a blue background"
TWO = "a red circle left of a blue star on a white background"
LONG = ", ".join([TEXT] * 20)
EULER = comfy.samplers.sampler_object("euler")
SHAPE = (1, 4, 16, 16)
HEAD = 32  # channels of a head in the shapes model


def corner(batch=1, height=128, width=128, right=False):
    """A quarter of the picture; a wider one for each further picture of a batch."""
    mask = torch.zeros(batch, height, width)
    for item in range(batch):
        columns = slice(width // 2, None) if right else slice(0, width // 2 - item * width // 4)
        mask[item, : height // 2, columns] = 1
    return mask


def painted(shapes, mask=None, weight=0.4, text=TEXT, phrase="red circle", model=None, strength=1.0):
    regions = SteerRegion.execute(corner() if mask is None else mask, phrase, strength).args[0]
    return SteerPaintWithWords.execute(model or shapes[0], shapes[1], text, regions, weight).args


def sampled(shapes, given, noise, sigmas=None, negative="", cfg=3.0):
    model, positive = given
    guider = host_guider(model, positive, encode(shapes[1], negative), cfg)
    return run(guider, EULER, sigmas_of(shapes[0], 6) if sigmas is None else sigmas, noise)


@pytest.fixture
def layers(shapes):
    """What each cross-attention layer of the shapes model gets and gives, call by call: (block, q, k, v, out)."""
    seen, hooks = [], []
    parts = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}
    for part, number, index in attention_sites(shapes[0].model):
        path = f"{parts[part]}.{f'{number}.' if part != 'middle' else ''}1.transformer_blocks.{index}.attn2"
        layer, given = shapes[0].model.diffusion_model.get_submodule(path), {}

        def keep(module, args, output, given, name):
            given[name] = output.clone()

        def finish(module, args, given):
            seen.append((given["q"], given["k"], given["v"], args[0].clone()))

        for name in "qkv":
            projection = layer.get_submodule(f"to_{name}")
            hooks.append(projection.register_forward_hook(lambda *a, g=given, n=name: keep(*a, g, n)))
        hooks.append(layer.to_out[0].register_forward_pre_hook(lambda *a, g=given: finish(*a, g)))
    yield seen
    for hook in hooks:
        hook.remove()


def published(q, k, v, w, factor):
    """The paper's line for one sample, every map in the open."""
    q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(0, 1) for x in (q, k, v))  # (heads, positions or tokens, channels)
    scores = q @ k.transpose(1, 2)
    maps = ((scores + w * factor * scores.max()) / HEAD**0.5).softmax(-1)
    return (maps @ v).transpose(0, 1).flatten(1)


LAWS = [(EPS, 5.0, log1p(5.0)), (V, 5.0, log1p(5.0)), (FLOW, 0.75, log1p(3.0)), (FLOW, 1.0, log1p(LARGEST_RATIO))]


@pytest.mark.parametrize("law, sigma, log_ratio", LAWS)
def test_every_layer_is_the_papers(shapes, layers, law, sigma, log_ratio):
    """Under the positive alone, whose rows the host puts last; not square, a mask for each picture of the batch."""
    mask = corner(2, 96, 160)
    given = painted(shapes, mask, 0.4, phrase="circle", model=with_law(shapes[0], law), strength=0.5)
    sampled(shapes, given, noise_of((2, 4, 12, 20)), torch.tensor([sigma, 0.0]))
    assert len(layers) == len(attention_sites(shapes[0].model))
    for q, k, v, out in layers:
        grid = (12, 20) if q.shape[1] == 240 else (6, 10)
        assert q.shape[:2] == (4, grid[0] * grid[1])
        w = q.new_zeros(4, grid[0] * grid[1], 77)
        w[2:, :, 3] = 0.5 * torch.nn.functional.adaptive_avg_pool2d(mask.to(q), grid).flatten(1)
        expected = torch.stack([published(*row, 0.4 * log_ratio) for row in zip(q, k, v, w, strict=True)])
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_one_token_moves_by_the_formula(shapes, layers):
    """Its log-odds, read from what the host's layers give when that token alone has a value."""
    alone = torch.zeros(77, 1)
    alone[3] = 1.0
    hooks = [
        module.register_forward_hook(lambda module, args, v: torch.zeros_like(v) + alone.to(v))
        for name, module in shapes[0].model.diffusion_model.named_modules()
        if name.endswith("attn2.to_v")
    ]
    try:
        sampled(shapes, painted(shapes, weight=0.3, phrase="circle"), noise_of(SHAPE), torch.tensor([5.0, 0.0]))
    finally:
        for hook in hooks:
            hook.remove()
    for q, k, _, out in layers:
        q, k, out = (x[1].unflatten(-1, (-1, HEAD)).transpose(0, 1) for x in (q, k, out))
        scores = q @ k.transpose(1, 2)
        before, after = (scores / HEAD**0.5).softmax(-1)[..., 3], out[..., 0]
        side = int(q.shape[1] ** 0.5)
        expected = q.new_zeros(side, side)
        expected[: side // 2, : side // 2] = 0.3 * log1p(5.0) * scores.max() / HEAD**0.5
        shift = (after.logit() - before.logit()).unflatten(1, (side, side))
        torch.testing.assert_close(shift, expected.expand_as(shift), rtol=1e-5, atol=1e-3 if ON_GPU else 1e-4)


def test_weight_zero_is_plain_sampling_bitwise_and_the_model_stays_as_it_is(shapes):
    noise = noise_of(SHAPE)
    plain = sampled(shapes, (shapes[0], encode(shapes[1], TEXT)), noise)
    assert torch.equal(sampled(shapes, painted(shapes, weight=0.0), noise), plain)
    assert torch.equal(sampled(shapes, painted(shapes, strength=0.0), noise), plain)
    assert relative(sampled(shapes, painted(shapes), noise), plain) > 0.01
    assert torch.equal(sampled(shapes, (shapes[0], encode(shapes[1], TEXT)), noise), plain)


def test_a_batch_with_its_own_masks_equals_singles_and_repeats_bitwise(shapes):
    noise, mask = noise_of((2, 4, 12, 16)), corner(2, 96, 128)
    together = sampled(shapes, painted(shapes, mask), noise)
    singles = [sampled(shapes, painted(shapes, m), n) for m, n in zip(mask.split(1), noise.split(1), strict=True)]
    assert relative(together, torch.cat(singles)) < 1e-5
    assert torch.equal(together, sampled(shapes, painted(shapes, mask), noise))


@pytest.mark.parametrize("negative", ["", LONG])
def test_host_batching_on_and_off_is_the_same(shapes, monkeypatch, negative):
    """A longer negative makes the host repeat the painted context."""
    noise, results = noise_of((2, 4, 16, 16)), []
    for split in (False, True):
        split_rows(monkeypatch, shapes[0], split)
        model, rows = counted(shapes[0])
        results.append(sampled(shapes, painted(shapes, corner(2), model=model), noise, negative=negative))
        assert set(rows) == ({2} if split else {4})
    assert relative(*results) < 1e-5


def predictions(model):
    """A clone of the model, and its predictions by which conditioning they are of."""
    found = {}

    def wrapper(apply_model, args):
        output = apply_model(args["input"], args["timestep"], **args["c"])
        found.update(zip(args["cond_or_uncond"], output.chunk(len(args["cond_or_uncond"])), strict=True))
        return output

    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model, found


@pytest.mark.parametrize("split", [False, True])
def test_other_conditionings_are_left_alone_in_whatever_order(shapes, monkeypatch, split):
    """The host's dual guider gives negative, middle, positive."""
    split_rows(monkeypatch, shapes[0], split)
    model, clip, _ = shapes
    model, found = predictions(model)
    one_step, noise, results = torch.tensor([5.0, 0.0]), noise_of(SHAPE), []
    for given in ((model, encode(clip, TEXT)), painted(shapes, model=model)):
        guider = comfy_extras.nodes_custom_sampler.Guider_DualCFG(given[0])
        guider.set_conds(given[1], encode(clip, TWO), encode(clip, ""))
        guider.set_cfg(3.0, 2.0)
        run(guider, EULER, one_step, noise)
        results.append(dict(found))
    negative, middle, positive = (relative(results[1][index], results[0][index]) for index in range(3))
    assert negative < 1e-5 and middle < 1e-5 and positive > 0.01


def test_sdxl_structure(shapes):
    """Several transformers in a block; the positive alone changes, and weight 0 changes nothing."""
    model, noise = tiny_sdxl(), noise_of((1, 4, 16, 12))
    empty = [[encode(shapes[1], "")[0][0], {"pooled_output": noise_of((1, 1280))}]]

    def out(weight):
        patched, positive = painted(shapes, corner(1, 128, 96), weight, model=model)
        positive = node_helpers.conditioning_set_values(positive, {"pooled_output": noise_of((1, 1280), 1)})
        return run(host_guider(patched, positive, empty, 3.0), EULER, sigmas_of(model, 4), noise)

    positive = [[encode(shapes[1], TEXT)[0][0], {"pooled_output": noise_of((1, 1280), 1)}]]
    plain = run(host_guider(model, positive, empty, 3.0), EULER, sigmas_of(model, 4), noise)
    assert torch.equal(out(0.0), plain) and relative(out(0.4), plain) > 0.001


def test_steers_own_guider_and_a_second_painting_on_the_same_model(shapes):
    """The hook serves every painting once, whichever model of the chain it was made with."""
    noise, sigmas = noise_of(SHAPE), sigmas_of(shapes[0], 6)
    model, first = painted(shapes)
    chained, second = painted(shapes, corner(right=True), model=model)
    alone = painted(shapes, corner(right=True))

    def out(model, positive, negative):
        return run(SteerCFGGuider.execute(model, positive, negative, 3.0, 0.0, 1.0, 1.0)[0], EULER, sigmas, noise)

    empty = encode(shapes[1], "")
    expected = out(*alone, empty)
    assert torch.equal(out(chained, second, empty), expected) and torch.equal(out(model, second, empty), expected)
    assert torch.equal(expected, sampled(shapes, alone, noise))
    both = out(model, second, first)  # a painted negative too
    assert relative(both, expected) > 0.01 and torch.equal(both, out(chained, second, first))


def louder(q, k, v, extra_options):
    return optimized_attention(q, k, v, extra_options["n_heads"]) * 1.1


@pytest.mark.parametrize("also", ["lora", "control", "output patch", "replacement"])
def test_composes(shapes, also):
    """Weight 0 is what the others do alone; a weight changes it."""
    model, clip, _ = shapes
    model = with_lora(model) if also == "lora" else model.clone()
    if also == "output patch":
        model.set_model_attn2_output_patch(lambda n, extra_options: n * 1.1)
    if also == "replacement":  # as IPAdapter's
        for block in attention_sites(model.model):
            model.set_model_attn2_replace(louder, *block[:2])

    def conditioned(given):
        return given[0], with_control(given[1]) if also == "control" else given[1]

    plain, zero, paint = (
        sampled(shapes, conditioned(given), noise_of(SHAPE))
        for given in (
            (model, encode(clip, TEXT)),
            painted(shapes, weight=0.0, model=model),
            painted(shapes, model=model),
        )
    )
    assert torch.equal(zero, plain) and relative(paint, plain) > 0.01
    assert relative(plain, sampled(shapes, (shapes[0], encode(clip, TEXT)), noise_of(SHAPE))) > 0.001


def test_prompt_to_prompt_says_what_is_in_the_way(shapes):
    """It runs two prompts in one call, which differ in their text alone."""
    *halves, edit = SteerPromptEdit.execute(shapes[1], TEXT, "a green circle on a blue background", "auto", "").args
    (model, positive), negative = painted(shapes), encode(shapes[1], "")
    with pytest.raises(ValueError, match="SteerPromptToPromptGuider: source is not from SteerPromptEdit"):
        SteerPromptToPromptGuider.execute(model, positive, halves[1], negative, 5.0, edit, 0.8, 0.4)
    source, target = halves[0] + positive, halves[1] + encode(shapes[1], TEXT)
    guider = SteerPromptToPromptGuider.execute(model, source, target, negative, 5.0, edit, 0.8, 0.4).args[0]
    with pytest.raises(ValueError, match="SteerPromptToPromptGuider: source and target differ in 'steer_paint'"):
        run(guider, EULER, sigmas_of(model, 3), noise_of(SHAPE))


def test_captured_attention_is_the_painted(shapes):
    model, positive = painted(shapes, weight=1.0, phrase="circle")
    guider = host_guider(model, positive, encode(shapes[1], ""), 3.0)
    noise = types.SimpleNamespace(seed=0, generate_noise=lambda latent: noise_of(SHAPE))
    latent = {"samples": torch.zeros(SHAPE)}
    captured = SteerCaptureAttention.execute(noise, guider, EULER, torch.tensor([14.6, 0.0]), latent).args[1]
    heat = captured.maps[16, 16][0, :, 3].unflatten(0, (16, 16))
    assert heat[:8, :8].mean() > 0.9 and heat[8:, 8:].mean() < 0.1


def test_a_prompt_joined_on_leaves_the_places_where_they_are(shapes, layers):
    """The host's Conditioning (Concat): the painted tokens are the first prompt's."""
    model, positive = painted(shapes, phrase="circle")
    (joined,) = nodes.ConditioningConcat().concat(positive, encode(shapes[1], TWO))
    sampled(shapes, (model, joined), noise_of(SHAPE), torch.tensor([5.0, 0.0]))
    for q, k, v, out in layers:
        side = int(q.shape[1] ** 0.5)
        w = q[0].new_zeros(side, side, 154)
        w[: side // 2, : side // 2, 3] = 1.0
        expected = published(q[1], k[1], v[1], w.flatten(0, 1), 0.4 * log1p(5.0))
        torch.testing.assert_close(out[1], expected, rtol=1e-5, atol=1e-5)


def test_the_object_lands_where_it_is_painted(shapes):
    model, clip, vae = shapes
    mask, noise = torch.zeros(4, 128, 128), noise_of((4, 4, 16, 16), 5)
    for item in range(4):
        mask[item, item // 2 * 64 :, item % 2 * 64 :][:64, :64] = 1
    regions = SteerRegion.execute(mask, "red circle", 1.0).args[0]
    regions = SteerRegion.execute(1 - mask, "blue background", 1.0, regions).args[0]
    given = SteerPaintWithWords.execute(model, clip, TEXT, regions, 0.3).args
    pictures = vae.decode(sampled(shapes, given, noise, sigmas_of(model, 12), cfg=5.0))
    found = [read_image((picture.clamp(0, 1) * 255).byte().numpy())["objs"][0] for picture in pictures]
    assert [(o["cy"] > 64) * 2 + (o["cx"] > 64) for o in found] == [0, 1, 2, 3]
    assert {(o["color"], o["shape"]) for o in found} == {("red", "circle")}


class TestBadInput:
    def refused(self, shapes, message, change=lambda conditioning: conditioning, shape=SHAPE, **given):
        model, rows = counted(shapes[0])
        with pytest.raises(ValueError, match=f"SteerPaintWithWords: .*{message}"):
            model, positive = painted(shapes, model=model, **given)
            sampled(shapes, (model, change(positive)), noise_of(shape))
        assert not rows

    def test_phrases_that_are_not_in_the_prompt(self, shapes):
        self.refused(shapes, "'cat' is not in the prompt .*circle", phrase="cat")

    @pytest.mark.parametrize("weight", [-0.1, float("nan"), 11.0])
    def test_weights(self, shapes, weight):
        self.refused(shapes, "weight is .*from 0 to 10", weight=weight)

    def test_masks_of_another_aspect_or_batch(self, shapes):
        self.refused(shapes, "mask of 'red circle': the mask is 128x128 but the latent is 24x16", shape=(1, 4, 16, 24))
        self.refused(shapes, "mask of 'red circle': 2 masks for a batch of 3", mask=corner(2), shape=(3, 4, 16, 16))

    def test_an_area(self, shapes):
        def with_area(conditioning):
            return node_helpers.conditioning_set_values(conditioning, {"area": (8, 8, 0, 0)})

        self.refused(shapes, "has an area", with_area)

    def test_a_conditioning_that_is_not_painted(self, shapes):
        self.refused(shapes, "no conditioning of this run belongs", lambda _: encode(shapes[1], TEXT))

    def test_no_regions(self, shapes):
        with pytest.raises(ValueError, match="SteerPaintWithWords: no regions"):
            SteerPaintWithWords.execute(*shapes[:2], TEXT, (), 0.4)

    @pytest.mark.parametrize(
        "mask, phrase, strength, message",
        [
            (torch.ones(1, 8, 8) * 255, "cat", 1.0, "runs from 255"),
            (torch.ones(1, 8, 8), " ", 1.0, "phrase is empty"),
            (torch.ones(1, 8, 8), "cat", -1.0, "strength is -1"),
        ],
    )
    def test_regions(self, mask, phrase, strength, message):
        with pytest.raises(ValueError, match=f"SteerRegion: .*{message}"):
            SteerRegion.execute(mask, phrase, strength)

    def test_legends(self):
        with pytest.raises(ValueError, match="SteerRegionsFromSegmentation: .*line 1"):
            SteerRegionsFromSegmentation.execute(torch.zeros(1, 8, 8, 3), "cat")

    def test_a_model_without_cross_attention(self, shapes):
        model = shapes[0].clone()
        model.model = types.SimpleNamespace(
            diffusion_model=torch.nn.Linear(1, 1), model_sampling=shapes[0].model.model_sampling
        )
        with pytest.raises(ValueError, match="SteerPaintWithWords: .*no cross-attention blocks"):
            painted(shapes, model=model)


def paint_with_words_on_family(family):
    regions = SteerRegion.execute(torch.nn.functional.pad(torch.ones(1, 64, 32), (0, 32)), "red circle", 1.0)[0]

    def painted(weight):
        model, text = SteerPaintWithWords.execute(family.model(), family.clip(), oracles.SOURCE, regions, weight).args
        return oracles.alone(family, family.joined(text, family.picture()), model)

    plain = oracles.alone(family, family.prompt(oracles.SOURCE))
    assert torch.equal(painted(0.0), plain) and relative(painted(2.0), plain) > 1e-3


def regions_on_family(family):
    pictures = torch.rand(1, 64, 64, 3)
    assert SteerRegion.execute(torch.ones(1, 64, 64), "red circle", 1.0)[0][0].phrase == "red circle"
    pictures[:, :32] = torch.tensor([1.0, 0.0, 0.0])
    (found,) = SteerRegionsFromSegmentation.execute(pictures, "#ff0000: cat")[0]
    assert found.phrase == "cat" and found.mask[..., :32, :].min() == 1


def check_regions(world, given, run, output):
    for region in output[0]:
        assert 0.0 <= region.strength <= 10.0 and region.phrase.strip()
        assert torch.isfinite(region.mask).all()
    model, clip = world.usual["MODEL"]["shapes"], world.usual["CLIP"]["clip"]
    check_painted(world, given, run, SteerPaintWithWords.execute(model, clip, PROMPT, output[0], 0.4))


def check_painted(world, given, run, output):
    model, conditioning = output
    checks.check_conditioning(conditioning)
    plain, negative = given.get("model", world.usual["MODEL"]["shapes"]), world.usual["CONDITIONING"]["empty"]
    checks.run_by_host(run, model, plain, conditioning, negative)


ORACLE = {
    "SteerRegion": ("works on pictures, whatever the model", regions_on_family),
    "SteerRegionsFromSegmentation": ("works on pictures, whatever the model", regions_on_family),
    "SteerPaintWithWords": (
        "weight 0 is plain sampling bit for bit; more changes the picture",
        paint_with_words_on_family,
    ),
}
CHECK = {
    "SteerRegion": (check_regions, checks.RUN),
    "SteerRegionsFromSegmentation": (check_regions, checks.RUN),
    "SteerPaintWithWords": (check_painted, checks.RUN),
}
USUAL = {
    "SteerRegion": {"phrase": ("circle", "red circle")},
    "SteerRegionsFromSegmentation": {"legend": ("#ff0000: circle\n#0000ff: background", "255, 0, 0: circle @ 0.5")},
    "SteerPaintWithWords": {"text": (PROMPT,)},
}
