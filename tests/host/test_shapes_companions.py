"""The companion files of the shapes checkpoint: through the stock loaders, and each does what it was trained for."""

import random

import comfy.controlnet
import pytest
import torch
from safetensors.torch import load_file
from steer.lab import models
from steer.lab.demo.runner import companions, lacking, load_workflow, main
from steer.lab.models.checks import told_pictures, told_score
from steer.lab.models.hypernetwork import check as hypernetwork_check
from steer.lab.models.hypernetwork.network import Hypernetwork, write_hypernetwork
from steer.lab.models.inpainting.check import completed, inpainted
from steer.lab.models.inpainting.checkpoint import FIRST, UNET, merged, write_checkpoint
from steer.lab.models.lora.check import hollow_pictures, hollow_score
from steer.lab.models.low_rank import kohya_key
from steer.lab.models.shapes_unet.check import Stock
from steer.lab.models.stock import with_hypernetwork, with_lora
from steer.lab.models.t2i_adapter import loader
from steer.lab.weights import CHECKPOINT, CONTROLNET, INPAINTING_ADDITIONS, LORA, T2I_ADAPTER
from steer.lab.world.control_pictures import outlines, silhouettes
from steer.lab.world.data import caption, sample_scene

COUNT, STEPS = 8, 10


@pytest.fixture(scope="module")
def stock():
    return Stock(steps=STEPS)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(4)
    return [sample_scene(rng, two=False) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def plain(stock, scenes):
    return stock.pictures([caption(scene) for scene in scenes], seed=5000)


def test_every_key_of_the_lora_is_loaded(stock, caplog):
    ups = [key for key in load_file(LORA) if key.endswith(".lora_up.weight")]
    assert len(with_lora(stock.model, stock.clip).patches) == len(ups) > 100
    assert "not loaded" not in caplog.text


@pytest.mark.slow
def test_lora_draws_hollow_objects(stock, scenes, plain):
    with_it = [hollow_score(*pair) for pair in zip(hollow_pictures(stock, scenes), scenes, strict=True)]
    assert not any(hollow_score(*pair)["hollow"] for pair in zip(plain, scenes, strict=True))
    assert sum(score["hollow"] for score in with_it) >= COUNT - 1
    assert sum(score["all"] for score in with_it) >= COUNT - 2


@pytest.mark.parametrize("width", [64, 128])
def test_host_computes_the_hypernetwork_that_was_trained(stock, tmp_path, width):
    with torch.inference_mode(False):
        network = Hypernetwork([64, 128]).requires_grad_(False)
    for weights in network.state_dict().values():
        weights.normal_(std=0.3)
    model = with_hypernetwork(stock.model, write_hypernetwork(tmp_path, network.state_dict()), 0.5)
    options = model.model_options["transformer_options"]["patches"]
    q, k, v = torch.randn(3, 2, 5, width)
    wanted_k, wanted_v = network(q, k, v, {})[1:]
    assert (wanted_k - k).abs().mean() > 0.5 < (wanted_v - v).abs().mean()
    for kind in ("attn1_patch", "attn2_patch"):
        (patch,) = options[kind]
        got_q, got_k, got_v = patch(q, k, v, {})
        assert got_q is q
        torch.testing.assert_close(got_k, (k + wanted_k) / 2)
        torch.testing.assert_close(got_v, (v + wanted_v) / 2)


def test_hypernetwork_of_strength_0_is_the_model(stock, plain, scenes, tmp_path):
    before, stock.model = stock.model, with_hypernetwork(stock.model, write_hypernetwork(tmp_path), 0.0)
    try:
        assert (stock.pictures([caption(scene) for scene in scenes], seed=5000) == plain).all()
    finally:
        stock.model = before


@pytest.mark.slow
def test_hypernetwork_draws_hollow_objects(stock, scenes):
    with_it = [
        hollow_score(*pair) for pair in zip(hypernetwork_check.hollow_pictures(stock, scenes), scenes, strict=True)
    ]
    assert sum(score["hollow"] for score in with_it) >= COUNT // 2
    assert sum(score["all"] for score in with_it) >= COUNT - 2


@pytest.mark.slow
@pytest.mark.parametrize(("file", "drawn"), [(CONTROLNET, outlines), (T2I_ADAPTER, silhouettes)])
def test_objects_take_the_form_they_are_told(stock, scenes, plain, file, drawn, caplog):
    def mean(pictures):
        return sum(told_score(*pair)["told iou"] for pair in zip(pictures, scenes, strict=True)) / COUNT

    assert mean(plain) < 0.4
    assert mean(told_pictures(stock, scenes, file, drawn)) > 0.75
    assert "could not be applied" not in caplog.text and "missing" not in caplog.text


@pytest.mark.slow
def test_inpainting_model_goes_on_with_what_it_sees(stock, scenes, tmp_path):
    inpainting = Stock(write_checkpoint(tmp_path), steps=STEPS)
    assert inpainting.model.model.diffusion_model.in_channels == 9
    wholes, holes, wanted = completed(scenes, random.Random(1))

    def mean(model):
        pictures = inpainted(model, wholes, holes, [caption(scene) for scene in wanted], kept=False)
        return sum(told_score(*pair)["told iou"] for pair in zip(pictures, wanted, strict=True)) / COUNT

    assert mean(inpainting) > mean(stock) + 0.25


def test_merging_changes_what_the_file_has_additions_to():
    state, additions = load_file(CHECKPOINT), load_file(INPAINTING_ADDITIONS)
    whole = merged(state, additions)
    changed = {key for key in state if not torch.equal(state[key], whole[key])}
    layers = {kohya_key(key.removeprefix(UNET).removesuffix(".weight")) for key in changed - {UNET + FIRST}}
    assert layers == {key.split(".")[0] for key in additions if key != FIRST}
    assert whole[UNET + FIRST].shape == (64, 9, 3, 3)
    layer = sorted(changed - {UNET + FIRST})[0]
    key = kohya_key(layer.removeprefix(UNET).removesuffix(".weight"))
    up, down = (additions[f"{key}.lora_{half}.weight"].float() for half in ("up", "down"))
    torch.testing.assert_close(whole[layer].float().flatten(1), state[layer].float().flatten(1) + up.flatten(1)
                               @ down.flatten(1), rtol=1e-3, atol=1e-3)  # fmt: skip


def test_other_adapters_go_on_to_the_host_as_they_came(monkeypatch):
    monkeypatch.setattr(comfy.controlnet, "load_t2i_adapter", lambda state, model_options: (state, model_options))
    loader.register()
    state, options = {"conv_in.weight": torch.zeros(320, 64, 3, 3)}, {}
    got = comfy.controlnet.load_t2i_adapter(state, model_options=options)
    assert got[0] is state and got[1] is options


def test_registering_again_changes_nothing():
    before = comfy.controlnet.load_t2i_adapter
    models.register()
    assert comfy.controlnet.load_t2i_adapter is before


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("lora_prompt_to_prompt", ["shapes_lora.safetensors"]),
        ("hypernetwork_prompt_to_prompt", ["shapes_hypernetwork.pt"]),
        ("train_lora", []),
        ("controlnet_blended", ["shapes_controlnet.safetensors"]),
        ("t2i_adapter_inversion", ["shapes_t2i_adapter.safetensors"]),
        ("concatenation", ["shapes_inpainting.safetensors"]),
        ("sdedit", []),
    ],
)
def test_runner_knows_what_fits_the_shapes_checkpoint_alone(name, files):
    assert companions(load_workflow(name)) == files


def test_runner_knows_what_a_host_lacks():
    prompt = load_workflow("train_lora")
    there = {node["class_type"]: {"output": ["LORA_MODEL"]} for node in prompt.values()}
    assert lacking(prompt, there) == []
    assert lacking(prompt, there | {"TrainLoraNode": {"output": ["MODEL", "LORA_MODEL"]}}) == ["TrainLoraNode"]
    del there["TrainLoraNode"], there["SaveLoRA"]
    assert lacking(prompt, there) == ["SaveLoRA", "TrainLoraNode"]


def test_runner_refuses_them_with_another_checkpoint(capsys):
    assert main(["--workflow", "controlnet_blended", "--checkpoint", str(CHECKPOINT)]) == 2
    said = capsys.readouterr().err
    assert "controlnet_blended needs shapes_controlnet.safetensors" in said and "--checkpoint" in said
