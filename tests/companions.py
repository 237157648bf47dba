"""What people combine with Steer's nodes in the host: adapters, LoRAs, areas, patches, other guiders."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import NamedTuple

import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import node_helpers
import nodes
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_hooks import CreateHookKeyframe, CreateHookLora, SetHookKeyframes
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg, PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from safetensors.torch import save_file

from ..lab.comfy.runs import Noise, encode, host_guider, noise_of, of_host, run
from ..lab.models import stock
from ..lab.weights import T2I_ADAPTER
from ..nodes.attention_maps import SteerCaptureAttention
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.host.attention.unet import attention_sites
from .host_models import with_control

LORA = "companion.safetensors"
STAR = "a green star on a white background"
SHAPE = (1, 4, 8, 8)
RED, GREEN = "a red circle on a blue background", "a green circle on a blue background"
EULER = comfy.samplers.sampler_object("euler")
ONE_STEP = torch.tensor([2.0, 0.0])


WINDOWS = "nodes_context_windows", "WanContextWindowsManualNode", 13, 4, "standard_static", 1, False, "pyramid"
"""Four of the latent's frames at a time, one of them the next one's too; whether with FreeNoise comes last."""
PATCHES = {  # of the host: module, node, inputs
    "FreeU": ("nodes_freelunch", "FreeU_V2", 1.3, 1.4, 0.9, 0.2),
    "Deep Shrink": ("nodes_model_downscale", "PatchModelAddDownscale", 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"),
    "HyperTile": ("nodes_hypertile", "HyperTile", 32, 1, 0, False),
    "HyperTile, deep": ("nodes_hypertile", "HyperTile", 32, 1, 1, False),
    "token merging": ("nodes_tomesd", "TomePatchModel", 0.5),
    "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", 0.7),
    "APG": ("nodes_apg", "APG", 1.0, 5.0, -0.5),
    "TCFG": ("nodes_tcfg", "TCFG"),
    "CFG-Zero*": ("nodes_cfg", "CFGZeroStar"),
    "CFGNorm": ("nodes_cfg", "CFGNorm", 1.0),
    "FreSca": ("nodes_fresca", "FreSca", 1.0, 1.25, 3),
    "Mahiro": ("nodes_mahiro", "Mahiro"),
    "Epsilon Scaling": ("nodes_eps", "EpsilonScaling", 1.05),
    "NAG": ("nodes_nag", "NAGuidance", 5.0, 0.5, 1.5),
    "CFG Override": ("nodes_custom_sampler", "CFGOverride", 2.0, 0.0, 1.0),
    "EasyCache": ("nodes_easycache", "EasyCacheNode", 0.2, 0.15, 0.95, False),
    "LazyCache": ("nodes_easycache", "LazyCacheNode", 0.2, 0.15, 0.95, False),
    "Temporal Score Rescaling": ("nodes_eps", "TemporalScoreRescaling", 0.9, 1.0),
    # of transformers
    "Skip Layer": ("nodes_slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "0", "0", 0.5),
    "Skip Layer Simple": ("nodes_slg", "SkipLayerGuidanceDiTSimple", 0.0, 1.0, "0", "0"),
    "Skip Layer SD3": ("nodes_sd3", "SkipLayerGuidanceSD3", "0", 3.0, 0.0, 1.0),
    # of clips
    "Context Windows": (*WINDOWS, False),
    "FreeNoise": (*WINDOWS, True),
}


def patched(model, name):
    """A clone of the model with one of PATCHES, at most of their defaults; a host without it skips the test."""
    module, node, *inputs = PATCHES[name]
    try:
        kind = getattr(import_module(f"comfy_extras.{module}"), node)
    except (ImportError, AttributeError):
        pytest.skip(f"this host has no {node}")
    if node == "WanContextWindowsManualNode" and "freenoise" not in signature(kind.execute).parameters:
        pytest.skip("this host has no FreeNoise")
    return of_host(kind, model, *inputs)


def with_cfg_override(model, cfg: float):
    """As the host's CFG Override does it, which older hosts lack: the guider's `cfg` for the time of a prediction."""

    def wrapper(executor, *args, **kwargs):
        guider = executor.class_obj
        saved, guider.cfg = guider.cfg, cfg
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = saved

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, wrapper)
    return model


class Companion(NamedTuple):
    """A model, and what becomes of a conditioning before it is used with it."""

    model: object
    on: Callable[[list], list]


def write_lora(model, folder) -> None:
    """A LoRA file: a rank-1 change of every query projection."""
    weights = {}
    for key, weight in model.model.diffusion_model.state_dict().items():
        if key.endswith("to_q.weight"):
            name = "lora_unet_" + key[: -len(".weight")].replace(".", "_")
            weights[f"{name}.lora_up.weight"] = 0.5 * noise_of((weight.shape[0], 1), len(weights))
            weights[f"{name}.lora_down.weight"] = 0.2 * noise_of((1, weight.shape[1]), len(weights) + 1)
            weights[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(weights, folder / LORA)


class Square:
    """A loss: the squared distance of the estimate to 0.8."""

    noisy, patchers, by_picture = False, (), ()

    def memory(self, shape):
        return 0.0

    def start(self, run, latent_format, differentiable):
        return lambda latent, sigma: 0.5 * (latent - 0.8).square().flatten(1).sum(1)


def ip_adapter(strength):
    """As IPAdapter's patch: attention to tokens of a picture on top, others for the negative, told by their index."""

    def patch(q, k, v, extra_options):
        heads, kinds = extra_options["n_heads"], extra_options["cond_or_uncond"]
        keys, values = noise_of((2, 2, 4, q.shape[-1]), 5).to(q)  # (positive and negative, tokens, channels)
        rows = q.shape[0] // len(kinds)
        picture = (torch.cat([x[kind].expand(rows, -1, -1) for kind in kinds]) for x in (keys, values))
        return optimized_attention(q, k, v, heads) + strength * optimized_attention(q, *picture, heads)

    return patch


def with_ip_adapter(model, strength):
    model = model.clone()
    for block in attention_sites(model.model):
        model.set_model_attn2_replace(ip_adapter(strength), *block[:2])
    return model


def guided(guider, scale):
    return SteerGradientGuider.execute(guider, Square(), scale, 0.0, 1.0, True, None, 1000.0)[0]


def check_slope(shapes, make):
    """Gradient guidance of the guiders that `make()` gives: at scale 0 bitwise it, else by the gradient of its loss."""
    noise, to_model = noise_of(SHAPE), shapes[0].model.process_latent_in
    plain = run(make(), EULER, ONE_STEP, noise)
    assert torch.equal(run(guided(make(), 0.0), EULER, ONE_STEP, noise), plain)
    change = (to_model(run(guided(make(), 1e-3), EULER, ONE_STEP, noise)) - to_model(plain)) / 1e-3
    direction = change / change.norm()

    def loss(step):
        denoised = to_model(run(make(), EULER, ONE_STEP, noise + step * direction / 2.0))
        return float(0.5 * (denoised.double() - 0.8).square().sum())

    slope = (loss(2e-2) - loss(-2e-2)) / 4e-2
    assert float((change * direction).sum()) == pytest.approx(-4.0 * slope, rel=0.02)  # D' - D = -sigma^2 dL/dx


def captured(model, positive, negative, noise, sigmas, ends=(0.8, 0.4)):
    guider = host_guider(model, positive, negative, 3.0)
    return SteerCaptureAttention.execute(Noise(noise), guider, EULER, sigmas, {"samples": noise * 0.0}, *ends).args


def lora_hooks(strength, keyframes=()):
    """The LoRA as the host's hook, with (strength, start_percent) keyframes."""
    hooks = CreateHookLora().create_hook(LORA, strength, 0.0)[0]
    group = None
    for share, start in keyframes:
        group = CreateHookKeyframe().create_hook_keyframe(share, start, group)[0]
    return SetHookKeyframes().set_hook_keyframes(hooks, group)[0] if group else hooks


def left_half(batch=1):
    """A mask at the picture's size."""
    mask = torch.zeros(batch, 128, 128)
    mask[..., :64] = 1.0
    return mask


def companion(shapes, name, strength=1.0) -> Companion:
    """One of COMPANIONS, the LoRA in its weights, or "none"; at strength 0 it is there and does nothing."""
    model, clip, _ = shapes
    on = list
    if name == "ControlNet":
        control = with_control(encode(clip, ""))[0][1]["control"]
        on = _with(control=control.set_cond_hint(control.cond_hint_original, 0.5 * strength, (0.0, 1.0)))
    elif name == "T2I-Adapter":
        pixels = torch.full((1, 128, 128, 3), 0.5)
        control = stock.with_control(encode(clip, ""), [], pixels, T2I_ADAPTER)[0][0][1]["control"]
        on = _with(control=control.set_cond_hint(control.cond_hint_original, strength, (0.0, 1.0)))
    elif name == "LoRA":
        model = nodes.LoraLoaderModelOnly().load_lora_model_only(model, LORA, strength)[0]
    elif name == "LoRA hook":
        on = _with(hooks=lora_hooks(strength)) if strength else list
    elif name == "scheduled LoRA hook":
        on = _with(hooks=lora_hooks(1.0, ((1.5 * strength, 0.0), (0.5 * strength, 0.4), (1.0 * strength, 0.8))))
    elif name == "area":
        area = of_host(nodes.ConditioningSetArea, encode(clip, STAR), 32, 64, 32, 0, strength)
        on = lambda conditioning: [*conditioning, *area] if strength else list(conditioning)  # noqa: E731
    elif name == "mask alone":
        on = lambda conditioning: of_host(nodes.ConditioningSetMask, conditioning, left_half(), "default", 1.0)  # noqa: E731
    elif name == "mask":
        star = of_host(nodes.ConditioningSetMask, encode(clip, STAR), 1.0 - left_half(), "default", 1.0)
        left = companion(shapes, "mask alone").on
        on = (lambda conditioning: [*left(conditioning), *star]) if strength else list
    elif name == "IPAdapter":
        model = with_ip_adapter(model, 0.5 * strength)
    elif name == "PAG":
        model = of_host(PerturbedAttentionGuidance, model, 2.0 * strength)
    elif name == "SAG":
        model = of_host(SelfAttentionGuidance, model, 0.5 * strength, 2.0)
    return Companion(model, on)


def _with(**values):
    return lambda conditioning: node_helpers.conditioning_set_values(conditioning, values)


PLACES = ["area", "mask"]
GUIDANCE = ["PAG", "SAG"]
COMPANIONS = ["ControlNet", "T2I-Adapter", "LoRA hook", "scheduled LoRA hook", *PLACES, "IPAdapter", *GUIDANCE]
GUIDERS = ["PerpNegGuider", "DualCFGGuider", "DualCFGGuider nested", "DualModelGuider", "PerpNeg"]


def guider_of(shapes, name, positive, negative, empty, cfg=3.0, other=None):
    """One of GUIDERS of the host, with another model for DualModelGuider's negative."""
    model = shapes[0]
    if name == "PerpNegGuider":
        guider = Guider_PerpNeg(model)
        guider.set_conds(positive, negative, empty)
        guider.set_cfg(cfg, 0.7)
    elif name.startswith("DualCFGGuider"):
        guider = custom_sampler.Guider_DualCFG(model)
        guider.set_conds(positive, negative, empty)
        guider.set_cfg(cfg, 2.0, nested="nested" in name)
    elif name == "DualModelGuider":
        guider = custom_sampler.Guider_DualModel(model, other)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    elif name == "PerpNeg":
        guider = comfy.samplers.CFGGuider(of_host(PerpNeg, model, empty, 0.7))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    return guider
