"""The video model: its trainers compute what the host computes, and the stock loader takes what they write."""

import random

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.samplers
import comfy.supported_models
import comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_hunyuan
import folder_paths
import nodes
import numpy as np
import pytest
import torch
from comfy.latent_formats import Wan21
from comfy.model_detection import model_config_from_unet
from PIL import Image
from safetensors.torch import save_file
from steer.bench import clips as bench_clips
from steer.bench.turns import to_bytes
from steer.lab.comfy.random_models import tiny_model
from steer.lab.demo.runner import load_workflow, shortened
from steer.lab.models.caption_roles import learn
from steer.lab.models.shapes_flux.captions import read
from steer.lab.models.shapes_flux.network import encode
from steer.lab.models.shapes_flux.train import optimizers
from steer.lab.models.shapes_wan import train, train_vae
from steer.lab.models.shapes_wan.autoencoder import CHANNELS, TEMPORAL, Autoencoder, host_state
from steer.lab.models.shapes_wan.autoencoder import decode as vae_decode
from steer.lab.models.shapes_wan.autoencoder import encode as vae_encode
from steer.lab.models.shapes_wan.check import WanStock, check_vae
from steer.lab.models.shapes_wan.loader import (
    ONE_OBJECT_TOKENS,
    SHIFT,
    TOKENS,
    WAN_CONFIG,
    ShapesUMT5Tokenizer,
    WanVAE,
)
from steer.lab.models.shapes_wan.network import PADDING, Network, checkpoint_state, velocity
from steer.lab.models.shapes_wan.roles import NAMES, SIZES, roles_in
from steer.lab.models.stock import load as load_stock
from steer.lab.models.training import Training, flow_loss
from steer.lab.weights import WAN
from steer.lab.world.clip_reader import score_clip
from steer.lab.world.clips import FRAMES, SIZE, caption, render_clip, sample_clip
from steer.lab.world.inputs import BOXED, write_inputs
from steer.lab.world.inputs import clip as drawn_clip
from steer.lab.world.metrics import object_mask
from steer.lab.world.reader import read_image
from steer.nodes import NODES
from steer.nodes.langevin import SteerLangevinSampler

TEXTS = ["a red heart moving up and a blue square standing still on a white background",
         "a red circle moving right on a black background"]  # fmt: skip


@pytest.fixture(scope="module")
def captions():
    return read(TEXTS, TOKENS)


@pytest.fixture(scope="module")
def autoencoder():
    """An autoencoder whose latents have other statistics than Wan's, as fp16 holds it."""
    torch.manual_seed(0)
    net = Autoencoder().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter + 0.02 * torch.randn_like(parameter)).half())
        net.mean.normal_()
        net.variance.uniform_(0.2, 3)
    return net


@pytest.fixture(scope="module")
def net(captions):
    """A network whose weights are all random, as fp16 holds them."""
    torch.manual_seed(0)
    net = Network(len(captions.vocabulary))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half())
    return net


@pytest.fixture(scope="module")
def stock(net, captions, autoencoder, tmp_path_factory):
    """The stock nodes on what the trainers write."""
    file = tmp_path_factory.mktemp("checkpoints") / "random_wan.safetensors"
    vae = host_state(autoencoder.state_dict())
    save_file(checkpoint_state(net.state_dict(), captions.vocabulary, vae), file)
    with torch.inference_mode():
        return WanStock(file, steps=2)


def clips(count, two=False):
    rng = random.Random(0)
    return [sample_clip(rng, two) for _ in range(count)]


def test_the_stock_loader_makes_the_model(stock):
    model = stock.model.model
    assert type(model.model_config).__name__ == "ShapesWan"
    assert type(model.diffusion_model) is comfy.ldm.wan.model.WanModel
    assert type(model.latent_format) is Wan21 and model.model_sampling.shift == SHIFT
    assert len(model.diffusion_model.blocks) == WAN_CONFIG["num_layers"]
    assert isinstance(stock.vae.first_stage_model, comfy.ldm.wan.vae.WanVAE)


def test_wan_itself_is_detected_as_before(stock):
    config = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "num_heads": 2,
              "num_layers": 2, "text_dim": 48, "in_dim": 16, "out_dim": 16}  # fmt: skip
    state = tiny_model(comfy.supported_models.WAN21_T2V, config).model.diffusion_model.state_dict()
    state = {"model.diffusion_model." + key: value for key, value in state.items()}
    assert type(model_config_from_unet(state, "model.diffusion_model.")) is comfy.supported_models.WAN21_T2V


def test_captions_are_read_by_the_stock_tokenizer(stock, captions):
    for text, rows in zip([*TEXTS, ""], [*captions.rows, captions.empty], strict=True):
        assert [token for token, _ in stock.clip.tokenize(text)["umt5xxl"][0]] == captions.vocabulary[rows].tolist()
        assert len(rows) == TOKENS
    assert captions.vocabulary[PADDING] == 0


def test_captions_of_one_object_are_told_by_their_length():
    for two in (False, True):
        rows = read([caption(clip) for clip in clips(200, two)], TOKENS).rows
        lengths = (rows != PADDING).sum(1)
        assert ((lengths > ONE_OBJECT_TOKENS) == two).all() and lengths.max() < TOKENS


def test_the_text_encoder_is_the_hosts(stock, net, captions):
    context = torch.cat([nodes.CLIPTextEncode().encode(stock.clip, text)[0][0][0] for text in TEXTS]).cpu()
    own = encode(net.text, captions.rows, captions.rows != PADDING)
    torch.testing.assert_close(own, context, rtol=1e-4, atol=1e-4)
    assert not own[captions.rows == PADDING].any() and own[captions.rows != PADDING].abs().sum(-1).all()


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 6, 10)])
def test_the_velocity_is_the_hosts(stock, net, captions, size):
    model = stock.model
    x, sigma = torch.randn(2, CHANNELS, *size), torch.tensor([0.9, 0.3])
    context = encode(net.text, captions.rows, captions.rows != PADDING)
    model.model.to(model.load_device)
    there = [part.to(model.load_device) for part in (x, sigma, context)]
    denoised = model.model.apply_model(*there[:2], c_crossattn=there[2]).cpu()
    straight = x - sigma.view(-1, 1, 1, 1, 1) * velocity(net.wan, x, sigma, context)
    assert (denoised - x).abs().max() > 0.1
    torch.testing.assert_close(denoised, straight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_the_autoencoder_is_the_hosts(autoencoder, frames):
    vae = autoencoder.vae
    x = 2 * torch.rand(2, 3, frames, 16, 24) - 1
    latents = vae.encode(x)
    assert latents.shape == (2, CHANNELS, (frames + 3) // 4, 2, 3) and latents.std() > 0.01
    torch.testing.assert_close(vae_encode(vae, x), latents, rtol=1e-4, atol=1e-5)
    decoded = vae.decode(latents)
    assert decoded.shape == x.shape and decoded.std() > 0.01
    torch.testing.assert_close(vae_decode(vae, latents), decoded, rtol=1e-4, atol=1e-5)


def test_normalised_latents_are_those_of_wans_format(stock, autoencoder):
    clip = render_clip(clips(1)[0])
    pixels = torch.from_numpy(clip).float() / 255
    own = autoencoder.encode(pixels.permute(3, 0, 1, 2)[None])
    latent = nodes.VAEEncode().encode(stock.vae, pixels)[0]
    assert latent["samples"].shape == own.shape
    torch.testing.assert_close(Wan21().process_in(latent["samples"].cpu()), own, rtol=0.02, atol=0.02)  # fp16
    back = torch.from_numpy(stock.decoded(latent)[0]) / 255
    torch.testing.assert_close(back, autoencoder.decode(own)[0].permute(1, 2, 3, 0).clamp(0, 1), rtol=0, atol=0.02)


def test_an_autoencoder_takes_its_width_from_the_file(autoencoder):
    vae = WanVAE(dim=12, z_dim=CHANNELS, temperal_downsample=TEMPORAL)
    vae.load_state_dict(autoencoder.vae.state_dict())
    x = 2 * torch.rand(1, 3, 5, 16, 16) - 1
    assert torch.equal(vae.encode(x), autoencoder.vae.encode(x))


def test_the_check_scores_a_clip_through_the_autoencoder(stock):
    scored = check_vae(stock, two=False, count=1)
    assert scored.keys() == {"frames", "every", "motion", "all", "psnr"} and scored["psnr"] > 0


def test_training_latents_are_the_autoencoders(autoencoder):
    told = clips(3)
    own = torch.cat([autoencoder.encode(train.stacked([render_clip(clip)])) for clip in told])
    latents = train.latents_of(host_state(autoencoder.state_dict()), told)
    torch.testing.assert_close(latents.float(), own, rtol=0.02, atol=0.02)


def test_stock_nodes_sample_a_clip(stock):
    drawn = stock.clips(TEXTS, 1)
    assert drawn.shape == (2, FRAMES, SIZE, SIZE, 3) and drawn.dtype == "uint8"
    assert stock.round_trip(drawn[0]).shape == drawn[0].shape


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """The host's folder of inputs, with those of the example workflows."""
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    write_inputs(tmp_path)


def test_the_clip_of_the_workflows_is_loaded_as_its_frames(inputs):
    frames = nodes.LoadImage().load_image("clip.png")[0]
    expected = torch.from_numpy(np.stack([np.asarray(frame) for frame in drawn_clip()])).float() / 255
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-6)
    assert score_clip((255 * frames).round().byte().numpy(), "a red circle moving right on a white background")["all"]


@pytest.mark.parametrize(
    "name, kept",
    [
        ("clip_continuation", range(5)),
        ("clip_bridge", (0, 5, 6, 7, 8)),
        ("clip_inpainting", (0, 5, 6, 7, 8)),
        ("clip_outpainting", ()),
    ],
)
def test_a_workflow_on_clips_keeps_what_is_given(stock, inputs, name, kept):
    pytest.importorskip("comfy_extras.nodes_images", reason="0.8.0 imports it with its server alone")
    prompt = shortened(load_workflow(name), {"steps": 2, "inner": 2})
    (saved,) = (node for node in prompt.values() if node["class_type"] == "SaveImage")
    source = nodes.LoadImage().load_image("clip.png")[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    loaded = {"1": (stock.model, stock.clip, stock.vae)}
    frames = result_of(prompt, saved["inputs"]["images"][0], loaded)[0]
    same = [bool(torch.equal(*pair)) for pair in zip(frames, source, strict=True)]
    assert same == [number in kept for number in range(FRAMES)]
    if name == "clip_outpainting":
        assert torch.equal(frames[:, :, :80], source[:, :, :80])


def test_a_thing_goes_where_the_maps_of_the_workflow_are(inputs):
    pytest.importorskip("comfy_extras.nodes_images", reason="0.8.0 imports it with its server alone")
    prompt, loaded = load_workflow("clip_layout"), {"1": load_stock(WAN)}
    with torch.inference_mode():
        maps, frames = (result_of(prompt, number, loaded)[0] for number in ("2", "12"))
    for colours, frame in zip(to_bytes(maps), to_bytes(frames), strict=True):
        (obj,) = read_image(frame)["objs"]
        assert obj["color"] == "red" and tuple(colours[round(obj["cy"]), round(obj["cx"])]) == (0xE6, 0x19, 0x4B)
        assert np.argwhere(object_mask(frame))[:, 0].mean() > 0.6 * SIZE  # unpainted it moves along the middle


def test_a_box_hides_some_frames_of_the_spoiled_clip(inputs):
    given, spoiled = (nodes.LoadImage().load_image(name)[0] for name in ("clip.png", "clip_box.png"))
    same = [bool(torch.equal(*pair)) for pair in zip(given, spoiled, strict=True)]
    assert same == [number not in BOXED for number in range(FRAMES)]


def result_of(prompt: dict, number: str, results: dict) -> tuple:
    """What a node of a prompt gives, run in this process, as are those before it that have no result yet."""
    if number not in results:
        kind, inputs = prompt[number]["class_type"], prompt[number]["inputs"]
        values = {
            name: result_of(prompt, value[0], results)[value[1]] if isinstance(value, list) else value
            for name, value in inputs.items()
        }
        known = {each.GET_SCHEMA().node_id: each for each in NODES} | nodes.NODE_CLASS_MAPPINGS
        known |= vars(comfy_extras.nodes_custom_sampler) | vars(comfy_extras.nodes_images)
        known |= vars(comfy_extras.nodes_hunyuan)
        node = known[kind]
        call = node.execute if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)
        output = call(**values)
        results[number] = getattr(output, "args", output)
    return results[number]


def test_the_benchmark_of_clips_measures_each_method(stock, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_clips, "FOLDER", tmp_path)
    euler, langevin = comfy.samplers.sampler_object("euler"), SteerLangevinSampler.execute(2, 0.5)[0]
    once = {"plain": (euler, 2), "Langevin": (langevin, 2)}
    monkeypatch.setattr(bench_clips, "methods", lambda: once)
    table = bench_clips.report(stock, 1)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(("| truth", "| plain", "| Langevin"))]
    assert len(rows) == 18 and rows[12] == ["| truth", "0", "0", "100% |"]
    assert [row[1:] for row in rows if row[0] == "| truth"][0] == ["0", "0", "100%", "100%", "100%", "100% |"]
    for row in rows[4:6]:  # the continuation's tracks: the given frames are as they were
        assert row[1:6] == ["0.0"] * 5
    with Image.open(tmp_path / "clips.png") as sheet:
        assert sheet.size == (FRAMES * SIZE, 3 * (3 * SIZE + bench_clips.GAP))
    with Image.open(tmp_path / "clips.webp") as animated:
        assert animated.n_frames == FRAMES


def test_the_benchmark_closes_a_loop_by_the_straight_way_back():
    clip = next(clip for clip in clips(30) if clip["objs"][0]["motion"] == "moving right")
    assert caption(bench_clips.back_of(clip)) == caption(clip).replace("right", "left")
    frames, loop = render_clip(clip), bench_clips.loop_of(clip)
    assert loop.shape == frames.shape
    assert np.array_equal(loop[0], frames[-1]) and np.array_equal(loop[5:], frames[:4])
    places = [bench_clips.centre(frame, clip["objs"][0]["color"])[0] for frame in loop]
    assert np.allclose(np.diff(places[:6]), -clip["objs"][0]["travel"] / 5, atol=1.0)


def test_roles_are_at_the_words_they_are_about():
    tokenizer = ShapesUMT5Tokenizer()
    for clip in clips(30) + clips(30, two=True):
        tokens = [tokenizer.inv_vocab[token] for token, _ in tokenizer.tokenize_with_weights(caption(clip))[0]]
        told = roles_in(clip)
        assert len(told) == 4 * len(clip["objs"]) + 1
        for place, numbers in told.items():
            color, shape, motion = (names[number] for names, number in zip(NAMES, numbers, strict=True))
            assert tokens[place].removeprefix("▁") in (color, shape, *motion.split())
        *things, background = [[names[n] for names, n in zip(NAMES, numbers, strict=True)] for numbers in told.values()]
        assert things[::4] == [[obj["color"], obj["shape"], obj["motion"]] for obj in clip["objs"]]
        assert background == [clip["bg"], "none", "background"]


@torch.inference_mode(False)
def test_the_text_encoder_learns_who_is_who():
    torch.manual_seed(0)
    told = clips(64)
    captions = read([caption(clip) for clip in told], TOKENS)
    net = Network(len(captions.vocabulary))
    before = net.text.shared.weight.clone()
    assert learn(net, captions.rows, [roles_in(clip) for clip in told], SIZES, steps=30) > 0.5
    assert not torch.equal(net.text.shared.weight, before)


@torch.inference_mode(False)
def test_before_clips_the_autoencoder_keeps_frames_apart():
    """What it learned from pictures it does to the last frame of each four, and gives that back four times."""
    torch.manual_seed(5)
    net, frames = Autoencoder().eval(), torch.rand(1, 3, 5, 16, 16)
    latents = net.encode(frames)
    torch.testing.assert_close(latents[:, :, 1:], net.encode(frames[:, :, 4:]), rtol=1e-4, atol=1e-5)
    decoded = net.decode(latents)
    torch.testing.assert_close(decoded[:, :, 1:], net.decode(latents[:, :, 1:]).expand(-1, -1, 4, -1, -1))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@torch.inference_mode(False)
def test_of_pictures_and_with_the_decoder_alone_only_what_is_used_learns():
    torch.manual_seed(3)
    net = Autoencoder()
    net.vae.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in net.named_parameters()}
    training = Training(net, train_vae.optimizers(net))
    training.update(train_vae.loss(net, train_vae.Windows(train_vae.clips(2), 1, 16, 2).draw()[0], 0.1), 1)
    changed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert "vae.decoder.conv1.weight" in changed and not any(
        "encoder" in name or "time_conv" in name for name in changed
    )


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@torch.inference_mode(False)
def test_a_short_training_lowers_the_loss(captions):
    torch.manual_seed(3)
    net = Network(len(captions.vocabulary))
    learned = [parameter for optimizer in optimizers(net) for parameter in optimizer.param_groups[0]["params"]]
    assert sorted(map(id, learned)) == sorted(map(id, net.parameters()))
    training = Training(net, optimizers(net))
    x0 = torch.randn(2, CHANNELS, 1, 1, 1).expand(2, CHANNELS, 3, 8, 8)
    losses = []
    for _ in range(40):
        loss = flow_loss(net, x0, captions.rows, SHIFT)
        training.update(loss, 1)
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@torch.inference_mode(False)
def test_a_short_training_of_the_autoencoder_lowers_the_loss(tmp_path):
    torch.manual_seed(3)
    net = Autoencoder()
    training = Training(net, [torch.optim.AdamW(net.parameters(), lr=train_vae.LEARNING_RATE)])
    windows, losses = train_vae.Windows(train_vae.clips(4), 5, 16, 4), []
    for _ in range(20):
        loss = train_vae.loss(net, windows.draw()[0], 0.1)
        training.update(loss, 1)
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert net.mean.abs().max() > 0 and training.ema["mean"].abs().max() > 0
    training.save(tmp_path / "state.safetensors")
    other = Autoencoder()
    Training(other, [torch.optim.AdamW(other.parameters())]).load(tmp_path / "state.safetensors")
    assert torch.equal(other.mean, net.mean)
