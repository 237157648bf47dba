"""Steer's nodes on other attention back-ends, weights, memory and devices: what they give on the plain model."""

import random
import threading
from collections.abc import Callable
from functools import cache

import comfy.ldm.modules.attention as attention
import comfy.model_management as management
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
from steer.lab.comfy.runs import Noise, encode, host_guider, noise_of, run, sigmas_of
from steer.lab.weights import CHECKPOINT, CLASSIFIER
from steer.lab.world.data import render, sample_scene
from steer.nodes.attention_maps import SteerCaptureAttention, SteerInjectAttention
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.classifier import SteerClassifierLoader, SteerClassifierLoss
from steer.nodes.ddim import SteerDDIMSampler
from steer.nodes.diffedit import SteerDiffEditMask
from steer.nodes.fit_lora import SteerFitLoRA
from steer.nodes.gradient_guidance import SteerGradientGuider
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.null_text import SteerNullText
from steer.nodes.paint_with_words import SteerPaintWithWords, SteerRegion
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import checkered, some
from steer.tests.companions import LORA, Square, companion, left_half, write_lora
from steer.tests.host_models import ON_GPU, hole, relative

SHAPE = (1, 4, 8, 8)
RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
EULER = comfy.samplers.sampler_object("euler")
MASK = hole(height=8, width=8)


@pytest.fixture(scope="module", autouse=True)
def files(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_lora(shapes[0], folder)
    (folder / CLASSIFIER.name).write_bytes(CLASSIFIER.read_bytes())
    for kind in ("loras", "classifiers"):
        folder_paths.add_model_folder_path(kind, str(folder), is_default=True)


@pytest.fixture(scope="module")
def conds(shapes):
    with torch.inference_mode():
        return encode(shapes[1], RED), encode(shapes[1], "")


@pytest.fixture(scope="module")
def latent(shapes):
    """Of a small picture."""
    with torch.inference_mode():
        pixels = torch.from_numpy(render(sample_scene(random.Random(3000))).copy())[None, ::2, ::2].float() / 255
        return {"samples": shapes[2].encode(pixels)}


def ddim():
    return SteerDDIMSampler.execute(0.0)[0]


def cfg_and_ddim(model, clip, conds, latent):
    empty = [[encode(clip, "a star")[0][0], dict(conds[1][0][1])]]
    guider = SteerCFGGuider.execute(model, *conds, 3.0, 0.0, 0.6, 0.5, empty)[0]
    return run(guider, ddim(), sigmas_of(model, 2), noise_of(SHAPE))


def gradient(model, clip, conds, latent):
    guider = SteerGradientGuider.execute(host_guider(model, *conds, 3.0), Square(), 1.0, 0.0, 0.7, True, None, 3.0)[0]
    return run(guider, EULER, sigmas_of(model, 2), noise_of(SHAPE))


def classifier(model, clip, conds, latent):
    loss = SteerClassifierLoss.execute(SteerClassifierLoader.execute(CLASSIFIER.name)[0], "red circle")[0]
    guider = SteerGradientGuider.execute(host_guider(model, *conds, 3.0), loss, 4.0, 0.0, 1.0, True)[0]
    return run(guider, EULER, sigmas_of(model, 2), noise_of(SHAPE))


def prompt_to_prompt(model, clip, conds, latent):
    *prompts, edit = SteerPromptEdit.execute(clip, RED, GREEN, "auto", "").args
    guider = SteerPromptToPromptGuider.execute(model, *prompts, conds[1], 3.0, edit, 0.8, 0.4)[0]
    return run(guider, EULER, sigmas_of(model, 2), noise_of(SHAPE))


def repaint(model, clip, conds, latent):
    sampler, guider = SteerRePaintSampler.execute(2, 1, 1.0)[0], host_guider(model, *conds, 3.0)
    return run(guider, sampler, sigmas_of(model, 2), noise_of(SHAPE), latent["samples"], MASK)


def langevin(model, clip, conds, latent):
    sampler, guider = SteerLangevinSampler.execute(2, 0.5)[0], host_guider(model, *conds, 3.0)
    return run(guider, sampler, sigmas_of(model, 3), noise_of(SHAPE), latent["samples"], MASK)


def blended(model, clip, conds, latent):
    sampler, guider = SteerBlendedSampler.execute(EULER, 1)[0], host_guider(model, *conds, 3.0)
    return run(guider, sampler, sigmas_of(model, 2), noise_of(SHAPE), latent["samples"], MASK)


def inverted(model, conds, latent):
    sigmas = sigmas_of(model, 20)[17:]
    output = SteerDDIMInversion.execute(host_guider(model, *conds, 1.0), sigmas, latent, 2, 1e-4, False).args
    return sigmas, *output


def inversion(model, clip, conds, latent):
    return inverted(model, conds, latent)[3].latents[0]


def trajectory_blend(model, clip, conds, latent):
    sigmas, kept, noise, made = inverted(model, conds, latent)
    sampler, edit = SteerTrajectoryBlendSampler.execute(EULER, made)[0], encode(clip, GREEN)
    guider = host_guider(model, edit, conds[1], 3.0)
    return run(guider, sampler, sigmas, noise.generate_noise(kept), kept["samples"], MASK)


def null_text(model, clip, conds, latent):
    entries = SteerNullText.execute(model, *conds, 5.0, inverted(model, conds, latent)[3], 2, 0.01, 0.0)[0]
    return torch.cat([embedding for embedding, _ in entries]) - conds[1][0][0]


def fit_lora(model, clip, conds, latent):
    """Its losses: from the second on the LoRA is in them."""
    inversion = inverted(model, conds, latent)[3]
    losses = SteerFitLoRA.execute(model, conds[0], Square(), inversion, 2, 1e-3, 3, 0.5, 3.0, 0, conds[1]).args[1]
    return torch.tensor(losses["loss"])


def diffedit(model, clip, conds, latent):
    return SteerDiffEditMask.execute(model, conds[0], encode(clip, GREEN), latent, 0.5, 3, 0.5, 0).args[1]


def captured(model, conds):
    guider, given = host_guider(model, *conds, 3.0), {"samples": torch.zeros(SHAPE)}
    return SteerCaptureAttention.execute(Noise(noise_of(SHAPE)), guider, EULER, sigmas_of(model, 2), given, 0.8, 0.4)


def capture(model, clip, conds, latent):
    return captured(model, conds).args[1].maps[8, 8]


def inject(model, clip, conds, latent):
    _, target, edit = SteerPromptEdit.execute(clip, RED, GREEN, "auto", "").args
    injected = SteerInjectAttention.execute(model, captured(model, conds).args[1], edit, 0.8, 0.4)[0]
    return run(host_guider(injected, target, conds[1], 3.0), EULER, sigmas_of(model, 2), noise_of(SHAPE))


def paint(model, clip, conds, latent):
    regions = SteerRegion.execute(left_half(), "circle", 1.0)[0]
    model, positive = SteerPaintWithWords.execute(model, clip, RED, regions, 0.4).args
    return run(host_guider(model, positive, conds[1], 3.0), EULER, sigmas_of(model, 2), noise_of(SHAPE))


NODES: list[Callable] = [cfg_and_ddim, gradient, classifier, prompt_to_prompt, repaint, langevin, blended, inversion,
                         trajectory_blend, null_text, diffedit, capture, inject, paint]  # fmt: skip
MOST = [cfg_and_ddim, gradient, prompt_to_prompt, repaint, langevin, inversion, null_text, inject, paint]


@pytest.fixture(scope="module")
def plain(shapes, conds, latent):
    """What each node gives on the shapes model as it is; made once."""
    found = {}

    def given(node):
        if node not in found:
            found[node] = node(shapes[0], shapes[1], conds, latent)
        return found[node]

    return given


@pytest.mark.parametrize("node, name", checkered([gradient, prompt_to_prompt, inject, paint],
                         ["basic", "sub_quad", "split", "pytorch"]))  # fmt: skip
def test_attention_back_ends(shapes, conds, latent, plain, name, node):
    """The ones that run on a CPU."""
    model, called = shapes[0].clone(), []
    back_end = getattr(attention, f"attention_{name}")

    def override(_, *args, **kwargs):
        called.append(name)
        return back_end(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    out = node(model, shapes[1], conds, latent)
    assert called and relative(out, plain(node)) < 1e-4


@cache
def stored(dtype, change=None):
    """The shapes model as the host loads it with weights of this kind."""
    weights = comfy.utils.load_torch_file(str(CHECKPOINT))
    if change:
        change(weights)
    with pytest.MonkeyPatch.context() as patch:
        if dtype not in (torch.float16, torch.bfloat16):  # which a GPU would compute in
            patch.setattr(management, "unet_manual_cast", lambda *args, **kwargs: torch.float32)
        return comfy.sd.load_state_dict_guess_config(
            weights, output_vae=False, output_clip=False, model_options={"dtype": dtype} if dtype else {}
        )[0]


def rounded(dtype):
    """The shapes model in float32, of weights that are rounded."""
    model = stored.__wrapped__(torch.float32)
    for weight in model.model.diffusion_model.parameters():
        weight.copy_(weight.to(dtype).float())
    return model


@pytest.fixture(scope="module")
def fp8():
    """(stored in it, the same numbers in float32)"""
    with torch.inference_mode():
        return stored(torch.float8_e4m3fn), rounded(torch.float8_e4m3fn)


@pytest.mark.parametrize("node", some([*MOST, fit_lora], cfg_and_ddim, prompt_to_prompt, null_text))
def test_fp8_weights(shapes, conds, latent, fp8, plain, node):
    """They are the numbers that they are, cast layer by layer."""
    assert {weight.dtype for weight in fp8[0].model.diffusion_model.parameters()} == {torch.float8_e4m3fn}
    out, expected = (node(model, shapes[1], conds, latent) for model in fp8)
    assert relative(out, expected) < 1e-4 and relative(out, plain(node)) > 1e-3


@pytest.mark.parametrize("node, dtype", checkered([cfg_and_ddim, gradient, prompt_to_prompt, inversion, fit_lora],
                         [torch.float16, torch.bfloat16]))  # fmt: skip
def test_half_precision(shapes, conds, latent, plain, monkeypatch, node, dtype):
    """Stored and computed in it: the result of the full precision, up to its rounding."""
    monkeypatch.setattr(management, "unet_manual_cast", lambda *args, **kwargs: None)
    model, seen = stored(dtype).clone(), set()
    model.set_model_attn2_output_patch(lambda n, extra_options: (seen.add(n.dtype), n)[1])
    out = node(model, shapes[1], conds, latent)
    assert seen == {dtype} and out.dtype == torch.float32 and torch.isfinite(out).all()
    off = (out - plain(node)).square().mean().sqrt() / plain(node).square().mean().sqrt()
    assert 0 < off < 0.1


def scale_layers(weights, keep):
    """The linear layers' weights as in checkpoints that are called fp8_scaled, or the numbers that those are."""
    prefix = "model.diffusion_model."
    for key in [key for key, weight in weights.items() if key.startswith(prefix) and weight.ndim == 2]:
        scale = weights[key].abs().max() / 448.0
        scaled = (weights[key] / scale).to(torch.float8_e4m3fn)
        weights[key] = scaled if keep else scaled.float() * scale
        bias = key.replace(".weight", ".bias")
        if bias in weights:  # older hosts round these too
            weights[bias] = weights[bias].to(scaled.dtype).float()
        if keep:
            weights[key.replace(".weight", ".scale_weight")] = scale.reshape(1)
    if keep:
        weights[prefix + "scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)


@pytest.fixture(scope="module")
def scaled():
    with torch.inference_mode():
        return [stored(None, lambda weights, keep=keep: scale_layers(weights, keep)) for keep in (True, False)]


@pytest.mark.parametrize("node", some([cfg_and_ddim, gradient, prompt_to_prompt, null_text, fit_lora], gradient))
def test_scaled_fp8_weights(shapes, conds, latent, scaled, plain, node):
    """Computed in full precision; autograd cannot keep such a weight, so it gets a copy of its numbers."""
    out, expected = (node(model, shapes[1], conds, latent) for model in scaled)
    assert relative(out, expected) < 1e-3 and relative(out, plain(node)) > 1e-3


@pytest.mark.parametrize(
    "node", some([cfg_and_ddim, gradient, repaint, inversion, null_text, fit_lora], repaint, null_text)
)
def test_a_lora_hook_is_the_lora_in_the_weights(shapes, conds, latent, plain, node):
    """Both of the same file, by the host's nodes."""
    with_hook = [companion(shapes, "LoRA hook").on(each) for each in conds]
    out = node(shapes[0], shapes[1], with_hook, latent)
    loaded = node(companion(shapes, "LoRA").model, shapes[1], conds, latent)
    close = (3e-3 if ON_GPU else 1e-3) if node is null_text else 1e-4
    assert relative(out, loaded) < close and relative(out, plain(node)) > 1e-3


@pytest.fixture
def offloaded(monkeypatch):
    """The host's loading for little memory, in which weights stay away and are cast as a layer is called."""
    load = management.LoadedModel.model_load

    def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
        return load(self, 1, force_patch_weights)

    management.unload_all_models()
    monkeypatch.setattr(management.LoadedModel, "model_load", model_load)
    yield
    management.unload_all_models()


@pytest.mark.parametrize("node", some([*MOST, classifier, fit_lora], gradient, inversion, inject, paint, fit_lora))
def test_low_vram(shapes, conds, latent, plain, offloaded, node):
    expected = plain(node)
    model, offloading = shapes[0].clone(), []
    model.set_model_attn2_output_patch(lambda n, extra_options: (offloading.append(model.model.model_lowvram), n)[1])
    out = node(model, shapes[1], conds, latent)
    close = 1e-3 if ON_GPU and node is null_text else 1e-5  # Adam reads the signs of gradients, of rounding's too
    assert offloading and all(offloading) and relative(out, expected) < close


@pytest.mark.parametrize("node", some([cfg_and_ddim, gradient, prompt_to_prompt, fit_lora], cfg_and_ddim, gradient))
def test_low_vram_with_a_lora(shapes, conds, latent, plain, request, node):
    """Then it is added to each weight as a layer is called."""
    model = nodes.LoraLoaderModelOnly().load_lora_model_only(shapes[0], LORA, 1.0)[0]
    expected = node(model, shapes[1], conds, latent)
    request.getfixturevalue("offloaded")
    out = node(model, shapes[1], conds, latent)
    assert model.lowvram_patch_counter() > 0 and relative(out, expected) < 1e-4 and relative(out, plain(node)) > 1e-3


class TestTwoDevices:
    """The host's work on several GPUs, here on two names of the CPU: a model clone and a thread for each."""

    @pytest.fixture
    def model(self, shapes, monkeypatch):
        multigpu = pytest.importorskip("comfy.multigpu", reason="this host has no multi-GPU path")
        devices = [torch.device("cpu"), torch.device("cpu", 0)]
        monkeypatch.setattr(management, "get_all_torch_devices", lambda exclude_current=False: devices)
        return multigpu.create_multigpu_deepclones(shapes[0], 2)

    @pytest.fixture
    def places(self, model):
        """The devices for which the model's layers run in a thread of their own."""
        found = set()

        def patch(n, extra_options):
            if threading.current_thread() is not threading.main_thread():
                found.add(extra_options["multigpu_thread_device"])
            return n

        model.set_model_attn2_output_patch(patch)
        return found

    @pytest.mark.parametrize(
        "node", some(NODES, cfg_and_ddim, classifier, repaint, inversion, null_text, diffedit, inject)
    )
    def test_nodes(self, shapes, conds, latent, plain, model, places, node):
        """What is differentiated stays on the first device, and an inversion at cfg 1 has nothing to share out."""
        assert relative(node(model, shapes[1], conds, latent), plain(node)) < 1e-4
        assert len(places) == {gradient: 0, inversion: 1, null_text: 1, diffedit: 1}.get(node, 2)

    @pytest.mark.parametrize("node, name", checkered([cfg_and_ddim, gradient, repaint],
                             ["ControlNet", "scheduled LoRA hook"]))  # fmt: skip
    def test_companions(self, shapes, latent, model, places, name, node):
        def out(model):
            conds = companion(shapes, name).on(encode(shapes[1], RED)), encode(shapes[1], "")
            return node(model, shapes[1], conds, latent)

        assert relative(out(model), out(shapes[0])) < 1e-4
