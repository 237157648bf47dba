"""What can come over the wires of Steer's nodes, right and wrong, and strategies that draw it for host/test_fuzz.py."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import SimpleNamespace

import comfy.samplers
import node_helpers
import numpy as np
import torch
from comfy.pixel_space_convert import PixelspaceConversionVAE
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG, Noise_EmptyNoise, Noise_RandomNoise
from hypothesis import strategies as st
from torch import Tensor

from ..lab.comfy.random_models import random_kl, tiny_flux, tiny_sdxl
from ..lab.comfy.runs import encode, host_guider, noise_of, watched
from ..nodes import NODES as CLASSES
from ..nodes.attention_maps import SteerCaptureAttention
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.classifier import SteerClassifierLoss
from ..nodes.clip_direction import SteerCLIPDirectionLoss
from ..nodes.clip_guidance import SteerCLIPImageLoss, SteerCLIPTextLoss
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.depth import SteerDepthLoss
from ..nodes.direct_edit import SteerDirectEditSampler, SteerEditGuider
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.guidance import SteerCFGGuider
from ..nodes.host.conditioning import HALF
from ..nodes.inversion import SteerDDIMInversion
from ..nodes.inversion_file import NoNullText
from ..nodes.langevin import SteerLangevinSampler
from ..nodes.measurement import SteerMeasurementLoss
from ..nodes.paint_with_words import SteerRegion
from ..nodes.palette import SteerPaletteLoss
from ..nodes.prompt_to_prompt import SteerLocalBlend, SteerPromptEdit, SteerPromptToPromptGuider
from ..nodes.repaint import SteerRePaintSampler
from ..nodes.style import SteerStyleLoss
from ..nodes.trajectory_blend import SteerTrajectoryBlendSampler
from ..samplers.classifier import Classifier, Network
from ..samplers.jpeg import JPEG
from ..samplers.measurement import Blur, Crop, Gray, Resize
from ..samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING
from .host_models import FLOW, V, planted_depth, with_law
from .matrices import collected

try:
    from comfy.nested_tensor import NestedTensor
except ImportError:  # older hosts, which have no packs of latents
    NestedTensor = None

NODES = {node.GET_SCHEMA().node_id: node for node in CLASSES}
PROMPT, TARGET = "a red circle on a blue background", "a red star on a blue background"
LONG = ", ".join([PROMPT] * 12)
SIZE, PIXELS = 8, 64
SIGMAS = (14.6, 2.0, 0.0)


class Shown:
    """A drawn value, with what it is for a failing example's report."""

    def __init__(self, name: str, value):
        self.name, self.value = name, value

    def __repr__(self):
        return self.name


@dataclass(repr=False)
class World:
    """Values of the types that only nodes make: by type and name, the usual ones and the odd ones."""

    usual: dict[str, dict[str, object]] = field(default_factory=dict)
    odd: dict[str, dict[str, object]] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    """The rows of each call of a diffusion model."""

    def add(self, kind: str, usual: dict, odd: dict) -> None:
        self.usual[kind], self.odd[kind] = usual, odd

    def counted(self, model):
        """A clone whose calls are counted."""
        return watched(model, self.calls.append)


def hole(*shape: int) -> Tensor:
    """A mask of 1 in its middle."""
    mask = torch.zeros(shape)
    height, width = shape[-2:]
    mask[..., height // 4 : max(3 * height // 4, 1), width // 4 : max(3 * width // 4, 1)] = 1.0
    return mask


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return noise_of(shape, seed)


def world_of(shapes, pair, classifier) -> World:
    """The world on the shapes' (model, clip, vae) and classifier, and on a CLIP pair (clip, clip_vision)."""
    world, (model, clip, vae) = World(), shapes
    model = world.counted(model)
    flow, v = with_law(model, FLOW), with_law(model, V)
    sdxl, flux = world.counted(tiny_sdxl()), world.counted(tiny_flux())
    world.add("MODEL", {"shapes": model}, {"flow": flow, "v": v, "sdxl": sdxl, "flux": flux})
    world.add("CLIP", {"clip": clip}, {"pair": pair[0]})
    world.add("TEXT_TOWER", {"pair": pair[0]}, {"clip": clip})
    world.add("CLIP_VISION", {"vision": pair[1]}, {})
    world.add("DA3_MODEL,MOGE_MODEL", {"planted": planted_depth()}, {})
    _add_vaes(world, vae)
    texts = _add_conditionings(world, clip)
    _add_noises_and_samplers(world)
    guider = host_guider(model, texts["prompt"], texts["empty"], 3.0)
    _add_inversions(world, guider, {"flow": flow})
    _add_classifiers(world, classifier)
    _add_losses(world, pair, vae)
    _add_edits(world, clip)
    _add_guiders(world, texts, guider)
    _add_attention(world, texts, model)
    _add_regions(world)
    world.calls.clear()
    return world


def _add_vaes(world: World, vae) -> None:
    def other(**changes):
        changed = copy.copy(vae)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    world.add(
        "VAE",
        {"taesd": vae},
        {"kl": random_kl(), "none": other(first_stage_model=None), "video": other(latent_dim=3),
         "pixels": other(first_stage_model=PixelspaceConversionVAE(), upscale_ratio=1, downscale_ratio=1),
         "16 channels": other(latent_channels=16)},
    )  # fmt: skip
    ratios = {"upscale_ratio": (lambda a: max(0, 4 * a - 3), SIZE, SIZE), "latent_dim": 3}
    blocks = {"upscale_ratio": (lambda a: max(1, (a - 2) // 5 * 17 + 5), SIZE, SIZE), "latent_dim": 3}
    world.add("CLIP_VAE", {"clips": other(**ratios)}, {**world.usual["VAE"], "blocks": other(**blocks)})
    world.usual["CLIP_LATENT"] = {"clip": drawn(1, 4, 2, SIZE, SIZE)}


def _add_conditionings(world: World, clip) -> dict:
    texts = {"prompt": encode(clip, PROMPT), "empty": encode(clip, ""), "target": encode(clip, TARGET)}

    def having(**options):
        return node_helpers.conditioning_set_values(texts["prompt"], options)

    def of(tensor, **options):
        return [[tensor, {"pooled_output": None, **options}]]

    odd = {
        "two": texts["prompt"] + texts["target"], "none": [], "long": encode(clip, LONG),
        "timed": having(start_percent=0.0, end_percent=1.0), "late": having(start_percent=0.9, end_percent=1.0),
        "masked": having(mask=hole(1, PIXELS, PIXELS), mask_strength=1.0, set_area_to_bounds=False),
        "bounds": having(mask=hole(1, PIXELS, PIXELS), mask_strength=1.0, set_area_to_bounds=True),
        "area": having(area=(4, 4, 0, 0), strength=1.0), "area outside": having(area=(8, 8, 64, 64), strength=1.0),
        "share": having(area=("percentage", 0.5, 0.5, 0.25, 0.25), strength=1.0),
        "batch of two": of(torch.cat([texts["prompt"][0][0], texts["target"][0][0]])), "three": of(drawn(3, 77, 128)),
        "no pooled key": [[texts["prompt"][0][0], {}]], "one token": of(drawn(1, 1, 128)), "five": of(drawn(1, 5, 128)),
        "narrow": of(drawn(1, 77, 64)), "flux's": of(drawn(1, 12, 48), pooled_output=drawn(1, 32)), "sdxl's":
        of(drawn(1, 77, 2048), pooled_output=drawn(1, 1280)), "nan": of(drawn(1, 77, 128) * float("nan")),
        "half": of(texts["prompt"][0][0].half()), "huge": of(drawn(1, 77, 128) * 1e30),
        "pooled": of(texts["prompt"][0][0], pooled_output=drawn(1, 1280)), "not saved": NoNullText("some.safetensors"),
    }  # fmt: skip
    world.add("CONDITIONING", texts, odd)
    return texts


def _add_noises_and_samplers(world: World) -> None:
    world.add("NOISE", {"random": Noise_RandomNoise(3)}, {"no noise": Noise_EmptyNoise()})
    names = (
        "heun",
        "dpm_2",
        "lms",
        "euler_ancestral",
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "ddpm",
        "lcm",
    )  # uni_pc writes to sigmas
    host = {name: comfy.samplers.sampler_object(name) for name in names}
    usual = {"euler": comfy.samplers.sampler_object("euler"), "ddim": SteerDDIMSampler.execute(0.0)[0]}
    steer = {
        "ddim eta 1": SteerDDIMSampler.execute(1.0)[0],
        "repaint": SteerRePaintSampler.execute(2, 1, 1.0)[0],
        "langevin": SteerLangevinSampler.execute(2, 0.5)[0],
        "blended": SteerBlendedSampler.execute(usual["euler"], 0)[0],
        "direct edit": SteerDirectEditSampler.execute(0.0, 0.0, 1)[0],
    }
    world.add("SAMPLER", usual, {**host, **steer})


def _add_inversions(world: World, guider, others: dict) -> None:
    def inverted(guider, sigmas, *shape):
        return SteerDDIMInversion.execute(guider, torch.tensor(sigmas), {"samples": drawn(*shape)}, 0, 1e-4, False).args

    latent, noise, usual = inverted(guider, SIGMAS, 1, 4, SIZE, SIZE)
    conds = guider.original_conds
    flow = host_guider(others["flow"], *(world.usual["CONDITIONING"][name] for name in ("prompt", "empty")), 3.0)
    made = {
        "batch of two": inverted(guider, SIGMAS, 2, 4, SIZE, SIZE),
        "wide": inverted(guider, SIGMAS, 1, 4, SIZE, 12),
        "other sigmas": inverted(guider, (3.0, 1.0, 0.0), 1, 4, SIZE, SIZE),
        "flow": inverted(flow, (1.0, 0.5, 0.0), 1, 4, SIZE, SIZE),
    }
    assert guider.original_conds is conds
    world.add("STEER_INVERSION", {"inversion": usual}, {name: args[2] for name, args in made.items()})
    world.usual["LATENT"] = {"inverted": latent["samples"]}
    world.usual["LARGE_LATENT"] = {"large": drawn(1, 4, 16, 16), "empty": torch.zeros(1, 4, 16, 16)}
    world.add("LARGE_NOISE", {"random": world.usual["NOISE"]["random"]}, world.odd["NOISE"])
    world.usual["NOISE"]["inverted"], world.odd["NOISE"]["of two"] = noise, made["batch of two"][1]
    blend = SteerTrajectoryBlendSampler.execute
    euler = world.usual["SAMPLER"]["euler"]
    world.odd["SAMPLER"] |= {"trajectory": blend(euler, usual)[0], "of two": blend(euler, made["batch of two"][2])[0]}


def _add_classifiers(world: World, classifier) -> None:
    torch.manual_seed(0)

    def other(law, latent_format, channels):
        return Classifier(("red circle", "b"), law, latent_format, Network(channels, 8, 2).requires_grad_(False).eval())

    odd = {
        "flow": other(RECTIFIED_FLOW, classifier.latent_format, 4),
        "another format": other(VARIANCE_EXPLODING, "SDXL", 4),
        "16 channels": other(VARIANCE_EXPLODING, classifier.latent_format, 16),
    }
    world.add("STEER_CLASSIFIER", {"classifier": classifier}, odd)


def _add_losses(world: World, pair, vae) -> None:
    label = {
        name: SteerClassifierLoss.execute(of, "red circle")[0] for name, of in world.odd["STEER_CLASSIFIER"].items()
    }
    usual = SteerClassifierLoss.execute(world.usual["STEER_CLASSIFIER"]["classifier"], "red circle")[0]
    odd = {
        **label,
        "text": SteerCLIPTextLoss.execute(pair[1], vae, pair[0], "a green star", 1)[0],
        "two pictures": SteerCLIPImageLoss.execute(pair[1], vae, torch.rand(2, PIXELS, PIXELS, 3), 1)[0],
        "measured": SteerMeasurementLoss.execute(vae, torch.rand(1, PIXELS, PIXELS, 3), 0.1, (Gray(),))[0],
        "palette": SteerPaletteLoss.execute(vae, torch.rand(1, 32, 48, 3), 4)[0],
        "style": SteerStyleLoss.execute(pair[1], vae, torch.rand(1, PIXELS, PIXELS, 3), 1, 1)[0],
        "direction": SteerCLIPDirectionLoss.execute(
            pair[1], vae, pair[0], torch.rand(1, PIXELS, PIXELS, 3), PROMPT, TARGET, 1
        )[0],
        "depth": SteerDepthLoss.execute(planted_depth(), vae, torch.rand(1, PIXELS, PIXELS, 3), 140)[0],
        "other vae": SteerCLIPTextLoss.execute(pair[1], world.odd["VAE"]["16 channels"], pair[0], "a star", 1)[0],
    }
    world.add("STEER_LOSS", {"loss": usual}, odd)
    chains = {"jpeg": (Gray(), JPEG(20)), "small": (Resize(),), "outside": (Crop(4096),), "wide blur": (Blur(60.0),)}
    world.add("STEER_OPERATOR", {"gray": (Gray(),)}, chains)


def _add_edits(world: World, clip) -> None:
    source, target, edit = SteerPromptEdit.execute(clip, PROMPT, TARGET, "auto", "star: 2").args
    odd = {
        "blend": SteerLocalBlend.execute(edit, "circle", "star", 0.3)[0],
        "long": SteerPromptEdit.execute(clip, LONG, TARGET, "auto", "").args[2],
        "window": SteerPromptEdit.execute(clip, PROMPT, TARGET, "refine", "", "star: 0.2-0.6").args[2],
    }
    world.add("STEER_EDIT", {"edit": edit}, odd)
    world.usual["CONDITIONING"] |= {"source of the edit": source, "target of the edit": target}
    plain = world.usual["CONDITIONING"] | world.odd["CONDITIONING"]
    for kind, half in (("SOURCE", source), ("TARGET", target)):
        mark = {HALF: half[0][1][HALF]}
        marked = {f"{name}, marked": node_helpers.conditioning_set_values(each, mark) for name, each in plain.items()
                  if isinstance(each, list)}  # fmt: skip
        world.add(kind, {kind.lower(): half}, plain | marked)


def _add_guiders(world: World, texts: dict, guider) -> None:
    models = {**world.usual["MODEL"], **world.odd["MODEL"]}
    model, loss, edit = models["shapes"], world.usual["STEER_LOSS"]["loss"], world.usual["STEER_EDIT"]["edit"]
    odd_texts = world.odd["CONDITIONING"]

    def host(model="shapes", positive=texts["prompt"], negative=texts["empty"], cfg=3.0):
        return host_guider(models[model], positive, negative, cfg)

    def edited(inversion=None):
        conds = world.usual["SOURCE"]["source"], world.usual["TARGET"]["target"], texts["empty"]
        return SteerPromptToPromptGuider.execute(model, *conds, 3.0, edit, 0.8, 0.4, None, inversion)[0]

    def guided(inner, loss=loss, through_model=False):
        return SteerGradientGuider.execute(inner, loss, 2.0, 0.0, 1.0, through_model)[0]

    steer = SteerCFGGuider.execute(model, texts["prompt"], texts["empty"], 3.0, 0.0, 1.0, 1.0)[0]
    inversion = world.usual["STEER_INVERSION"]["inversion"]
    basic, dual = Guider_Basic(model), Guider_DualCFG(model)
    basic.set_conds(texts["prompt"])
    dual.set_conds(texts["prompt"], texts["target"], texts["empty"])
    dual.set_cfg(3.0, 2.0)
    usual = {"host's": guider, "steer's": steer, "basic": basic}
    odd = {
        "three terms": SteerCFGGuider.execute(
            model, texts["prompt"], texts["target"], 3.0, 0.0, 1.0, 2.0, texts["empty"])[0],
        "dual": dual,
        "pair": SteerEditGuider.execute(model, texts["prompt"], texts["target"], 1.0, 3.0, texts["empty"])[0],
        "guided": guided(steer), "guided twice": guided(guided(guider), world.odd["STEER_LOSS"]["text"]),
        "edited": edited(), "edited on its inversion": edited(inversion), "guided edited": guided(edited()),
        **{f"host's {name}": host(name) for name in ("flow", "v", "sdxl", "flux")},
        **{f"host's with {name}": host(positive=odd_texts[name]) for name in (
            "none", "two", "narrow", "nan", "batch of two", "area", "area outside", "long", "late")},
    }  # fmt: skip
    world.add("GUIDER", usual, odd)


def _add_attention(world: World, texts: dict, model) -> None:
    def recorded(positive, batch=1, width=SIZE, sigmas=SIGMAS, ends=(0.8, 0.4)):
        guider = host_guider(model, positive, texts["empty"], 3.0)
        noise, euler = world.usual["NOISE"]["random"], world.usual["SAMPLER"]["euler"]
        latent = {"samples": torch.zeros(batch, 4, SIZE, width)}
        return SteerCaptureAttention.execute(noise, guider, euler, torch.tensor(sigmas), latent, *ends)[1]

    odd = {
        "maps alone": recorded(texts["prompt"], ends=(1.0, 1.0)), "long": recorded(world.odd["CONDITIONING"]["long"]),
        "batch of two": recorded(texts["prompt"], batch=2), "wide": recorded(texts["prompt"], width=12),
        "other sigmas": recorded(texts["prompt"], sigmas=(3.0, 0.0)),
    }  # fmt: skip
    world.add("STEER_ATTENTION", {"attention": recorded(texts["prompt"])}, odd)


def _add_regions(world: World) -> None:
    def region(mask=None, phrase="circle", strength=1.0, regions=None):
        return SteerRegion.execute(hole(1, PIXELS, PIXELS) if mask is None else mask, phrase, strength, regions)[0]

    odd = {
        "chained": region(phrase="background", regions=region()), "in latents": region(hole(SIZE, SIZE)),
        "of two": region(hole(2, PIXELS, PIXELS)), "wide": region(hole(1, PIXELS, 96)), "weak": region(strength=0.0),
        "of nothing there": region(phrase="elephant"), "grey": region(torch.full((1, PIXELS, PIXELS), 0.4)),
    }  # fmt: skip
    world.add("STEER_REGIONS", {"region": region()}, odd)


DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: x * float("nan"), "infinite": lambda x: x + float("inf"), "zeros": lambda x: x * 0,
    "ones": lambda x: x * 0 + 1, "huge": lambda x: x * 1e30, "tiny": lambda x: x * 1e-30, "bytes": lambda x: x * 255,
    "negative": lambda x: -x.abs() - 1, "largest": lambda x: x * 0 + 3e38, "constant": lambda x: x * 0 + 0.5,
    "one nan": lambda x: x.index_fill(-1, torch.tensor([0]), float("nan")) if x.ndim and x.shape[-1] else x,
}  # fmt: skip
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "turned": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim and x.shape[0] else x,
}
SHAPES = {
    "LATENT": [(), (4,), (8, 8), (4, 8, 8), (1, 4, 8), (1, 16, 8, 8), (1, 3, 8, 8), (0, 4, 8, 8), (1, 4, 0, 8),
               (1, 4, 1, 1), (1, 4, 7, 5), (2, 4, 8, 8), (3, 4, 8, 8), (1, 4, 8, 12), (1, 4, 1, 8, 8), (1, 4, 2, 8, 8),
               (1, 16, 1, 8, 8), (1, 1, 8, 8), (1, 4, 2, 3)],
    "IMAGE": [(), (3,), (64, 64), (64, 64, 3), (1, 64, 64), (1, 64, 64, 1), (1, 64, 64, 2), (1, 64, 64, 4),
              (0, 64, 64, 3), (1, 0, 64, 3), (1, 1, 1, 3), (2, 64, 64, 3), (3, 64, 64, 3), (1, 63, 61, 3),
              (1, 64, 96, 3), (1, 3, 64, 64), (1, 1, 64, 64, 3), (1, 128, 128, 3), (1, 64, 64, 0)],
    "MASK": [(), (64,), (64, 64), (8, 8), (1, 8, 8), (1, 1, 64, 64), (2, 64, 64), (3, 64, 64), (0, 64, 64), (1, 0, 0),
             (1, 0, 64), (1, 64, 96), (1, 63, 65), (1, 1, 1), (2, 1, 64, 64), (1, 4, 8, 8), (1, 1, 1, 64, 64),
             (1, 128, 128), (1, 64, 64, 3)],
}  # fmt: skip
USUAL = {
    "LATENT": lambda *shape: drawn(*shape),
    "IMAGE": lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)),
    "MASK": lambda *shape: hole(*shape) if len(shape) > 1 else torch.ones(shape),
}
USUAL_SHAPE = {"LATENT": (1, 4, SIZE, SIZE), "IMAGE": (1, PIXELS, PIXELS, 3), "MASK": (1, PIXELS, PIXELS)}


@st.composite
def tensors(draw, kind: str) -> Shown:
    """A tensor that is odd in one way or in all."""
    way = draw(st.sampled_from(("shape", "shape", "shape", "fill", "fill", "dtype", "layout", "all")))
    every = way == "all"
    shape = draw(st.sampled_from(SHAPES[kind])) if every or way == "shape" else USUAL_SHAPE[kind]
    tensor, name = USUAL[kind](*shape), f"{kind} {shape}"
    for which, table in (("fill", FILLS), ("layout", LAYOUTS)):
        if every or way == which:
            chosen = draw(st.sampled_from(list(table)))
            tensor, name = table[chosen](tensor), f"{name} {chosen}"
    if every or way == "dtype":
        dtype = draw(st.sampled_from(DTYPES))
        tensor, name = tensor.nan_to_num().clamp(-300, 300).to(dtype), f"{name} {dtype}"
    return Shown(name, tensor)


def usual_tensor(kind: str) -> st.SearchStrategy:
    return st.just(Shown(kind, USUAL[kind](*USUAL_SHAPE[kind])))


@st.composite
def latents(draw, odd: bool, usual: dict) -> Shown:
    """A LATENT; its noise mask, batch indices and further keys too."""
    samples = draw(tensors("LATENT") if odd else picked(usual))
    latent, name = {"samples": samples.value}, repr(samples)
    if odd and NestedTensor and draw(st.integers(0, 9)) == 0:
        return Shown("pack", {"samples": NestedTensor([drawn(1, 4, 8, 8), drawn(1, 8, 10)])})
    mask = draw(st.sampled_from(("usual", "usual", "usual", "none", "odd"))) if odd else "usual"
    if mask != "none":
        of = draw(usual_tensor("MASK") if mask == "usual" else tensors("MASK"))
        latent["noise_mask"], name = of.value, f"{name} with {of}"
    if odd:
        latent |= draw(st.sampled_from(({}, {}, {"batch_index": [0]}, {"batch_index": [2, 0]}, {"type": "audio"},
                                        {"downscale_ratio_spacial": 8})))  # fmt: skip
    return Shown(f"{{{name}, {sorted(latent)}}}", latent)


ODD_SIGMAS = ((), (1.0,), (0.0, 0.0), (0.0, 2.0, 14.6), (2.0, 14.6), (14.6, float("nan"), 0.0), (14.6, 0.0, 0.0),
              (14.6, 0.0, 2.0), (2.0, 2.0, 0.0), (14.6, 2.0, 2.0, 1.0), (-1.0, -2.0), (14.6, -1.0), (1e30, 1.0, 0.0),
              (float("inf"), 1.0, 0.0), (100.0, 1.0, 0.0), (999999999.9, 1.0, 0.0), (1e-30, 0.0), (2.0, 1e-30, 0.0),
              (2.0, 1.0), (1.0, 0.5, 0.0), (0.9, 0.2, 0.0), (1.0, 0.5), (2.0, 0.0), (14.6, 2.0), (14.6, 8.0, 2.0, 0.0)
              )  # fmt: skip


@st.composite
def sigmas(draw, odd: bool) -> Shown:
    values = draw(st.sampled_from(ODD_SIGMAS)) if odd else SIGMAS
    dtype = (
        draw(st.sampled_from((torch.float32, torch.float32, torch.float64, torch.float16))) if odd else torch.float32
    )
    if odd and all(value == int(value) for value in values if value == value and abs(value) < 1e6):
        dtype = draw(st.sampled_from((dtype, torch.int64)))
    tensor = (
        torch.tensor(values).nan_to_num(posinf=9e9).to(dtype)
        if dtype == torch.int64
        else torch.tensor(values, dtype=dtype)
    )
    return Shown(f"sigmas {values} {dtype}", tensor)


BAD_NUMBERS = (float("nan"), float("inf"), -float("inf"), -1, 0, 0.0, -0.5, 1e30, -1e30, 1e-30, True, False, 1, 3.0,
               2.5, 2**63, -(2**63), 2**64, 10**400, np.float32(0.25), np.float64(0.5), np.int64(2), np.float32("nan"),
               100001, 1000001.5)  # fmt: skip
BAD_TEXTS = (
    "", " ", "\n", ",", ", ,", ":", "::", "-", "elephant", "star", "🐱", "🐱: 2", "猫", "é" * 50, "a" * 10_000,
    "cat " * 3000, "\0", "x\0y", "\ud800", "../../x", "/etc/x", "a/../../x", "..", ".", "/", "~", "a\\b", "%year%",
    "%date:%", "con", "x" * 300, "x/" * 200 + "y", "fuzz/" + "é" * 200, "star: nan", "star: inf", "star: 1e999",
    "star:", "star: 2, star", "star: 1_0", "star: ٣", "star: 2-1", "star: 0.2-0.6-0.9", "star: -", "star: 0.2-",
    "star: 1e30", "star: -1e38", "(star:1.2)", "((((", "\\(", "(star:1e40)", "(star:nan)", "embedding:nothing",
    "<|endoftext|>", "<|startoftext|> star", "#ff0000", "#ff0000:", "#gggggg: star", "256, 0, 0: circle",
    "-1, 0, 0: circle", "#ff0000: circle @ -1", "#ff0000: circle @ 99999999", "#ff0000: circle @ " + "9" * 400,
    "#ff0000: circle\n#ff0000: star", "٣, 0, 0: circle", "#ff0000: @", "#123456: circle", "circle, star",
    "red circle,, blue", "RED CIRCLE", "circle!", "fuzz.safetensors", "../fuzz.safetensors", "x.safetensors [output]",
    "x [temp]", "[output]", "bad.safetensors [output]", "normal", "refine", "None",
)  # fmt: skip


def usual(node_id: str, item) -> tuple:
    """What the method's own test says is usual on this input; nothing, if it does not say."""
    return collected("USUAL").get(node_id, {}).get(item.id, ())


def numbers(node_id: str, item, odd: bool) -> st.SearchStrategy:
    if odd:
        return st.sampled_from(BAD_NUMBERS) | st.floats() | st.integers(-3, 1)
    if values := usual(node_id, item):
        return st.sampled_from(values)
    if item.io_type == "INT":
        return st.sampled_from((item.default, item.min, item.max))
    return st.just(item.default) | st.floats(item.min, item.max)


def shown(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return strategy.map(lambda value: Shown(repr(value)[:200], value))


@st.composite
def regions(draw, world: World) -> Shown:
    """Regions made of an odd mask, phrase or strength, where the node takes them."""
    given = draw(tensors("MASK")), draw(shown(odd_texts())), draw(st.sampled_from((0.0, 1.0, 10.0)))
    try:
        return Shown(f"region {given}", SteerRegion.execute(given[0].value, given[1].value, given[2])[0])
    except ValueError:
        return draw(picked(world.odd["STEER_REGIONS"]))


@cache
def usual_texts() -> list[str]:
    """Those that are usual on some input of words; not names of files, which are there to be read."""
    inputs = [(node_id, item) for node_id, node in NODES.items() for item in node.GET_SCHEMA().inputs]
    texts = [text for node_id, item in inputs if item.io_type == "STRING" for text in usual(node_id, item)]
    return list(dict.fromkeys(texts))


def odd_texts() -> st.SearchStrategy:
    """Bad ones, and those that belong elsewhere."""
    return st.sampled_from(BAD_TEXTS) | st.sampled_from(usual_texts()) | st.text()


def picked(values: dict) -> st.SearchStrategy:
    return st.sampled_from([Shown(name, value) for name, value in values.items()])


SPECIAL = {("SteerCLIPTextLoss", "clip"): "TEXT_TOWER", ("SteerCLIPDirectionLoss", "clip"): "TEXT_TOWER",
           ("SteerLocalBlend", "latent_image"): "LARGE_LATENT", ("SteerLocalBlend", "noise"): "LARGE_NOISE",
           ("SteerPromptToPromptGuider", "source"): "SOURCE",
           ("SteerPromptToPromptGuider", "target"): "TARGET", ("SteerFrameMask", "vae"): "CLIP_VAE",
           ("SteerFrameMask", "latent_image"): "CLIP_LATENT"}  # fmt: skip


def one(node_id: str, item, odd: bool, world: World) -> st.SearchStrategy:
    """A value for an input of a node, or of what runs afterwards."""
    kind = SPECIAL.get((node_id, item.id), item.io_type)
    if kind in ("FLOAT", "INT"):
        return shown(numbers(node_id, item, odd))
    if kind == "BOOLEAN":
        return shown(st.booleans() if not odd else st.sampled_from((0, 1, True, False)))
    if kind == "COMBO":
        return shown(odd_texts() if odd else st.sampled_from(usual(node_id, item) or item.options))
    if kind == "STRING":
        return shown(odd_texts() if odd else st.sampled_from(usual(node_id, item)))
    if kind in ("LATENT", "LARGE_LATENT", "CLIP_LATENT"):
        return latents(odd, world.usual[kind])
    if kind == "SIGMAS":
        return sigmas(odd)
    if kind in USUAL:
        return tensors(kind) if odd else usual_tensor(kind)
    if kind == "STEER_REGIONS" and odd:
        return picked(world.odd[kind]) | regions(world)
    return picked(world.odd[kind] or world.usual[kind]) if odd else picked(world.usual[kind])


RUNNING = {
    name: SimpleNamespace(id=name, io_type=kind, optional=False)
    for name, kind in (("noise", "NOISE"), ("guider", "GUIDER"), ("sampler", "SAMPLER"), ("sigmas", "SIGMAS"),
                       ("latent_image", "LATENT"), ("positive", "TARGET"))
}  # fmt: skip


TEXT = drawn(1, 5, 128)
ODD_TENSORS = (TEXT * 1j, TEXT.to_sparse(), TEXT.to("meta"), torch.nested.nested_tensor([TEXT[0], TEXT[0]]))
LITERALS = (
    None, 0, 1, -1, 2.5, float("nan"), 10**400, True, "", "x", "a" * 10_000, b"x", 1j, [], [1], ["1", 0], ["x"] * 3,
    [[]], [None], [[1, {}]], [["x", {}]], [[TEXT]], [[TEXT, None]], [[TEXT, {}, {}]], [[TEXT[0], {}]], [[None, {}]],
    [[TEXT[:, :0], {}]], [[TEXT, {1: 2}]], [[TEXT, {"pooled_output": [1.0]}]], *([[odd, {}]] for odd in ODD_TENSORS),
    (), ("x",), {}, {"a": 1}, {0: TEXT}, {"samples": 1}, {"samples": "x"}, {"samples": None}, {"samples": [1.0]},
    {"samples": drawn(1, 4, 8, 8), "noise_mask": 1}, {"samples": drawn(1, 4, 8, 8), "noise_mask": np.ones((8, 8))},
    *({"samples": odd} for odd in ODD_TENSORS[:3]), set(), range(2), object(), object, len, np.zeros(3),
    np.zeros((2, 2)), SimpleNamespace(samples=1), *ODD_TENSORS,
)  # fmt: skip
"""What JSON, or a node with an output of any type, can put in place of what belongs on a wire."""
TENSORS = ("IMAGE", "MASK", "SIGMAS")
NUMBERS_OF_ANY_KIND = ("INT", "FLOAT", "BOOLEAN")
TEXTS_OF_ANY_KIND = ("STRING", "COMBO")


def belongs(item, value) -> bool:
    """Whether the input takes the value, or refuses it for what it says rather than for its type."""
    kind = item.io_type
    if value is None:
        return item.optional and kind not in (*NUMBERS_OF_ANY_KIND, *TEXTS_OF_ANY_KIND)
    if kind in NUMBERS_OF_ANY_KIND:
        return isinstance(value, int | float | np.number)
    if kind in TEXTS_OF_ANY_KIND:
        return isinstance(value, str)
    if kind in TENSORS:
        return isinstance(value, Tensor) and not any(value is odd for odd in ODD_TENSORS)
    # no entries are none to refuse
    return kind in ("CONDITIONING", "STEER_REGIONS") and isinstance(value, list | tuple | set) and not value


def in_place_of(item, world: World) -> list:
    """Literals, and the usual values of other types, that do not belong on this input."""
    others = [
        value
        for kind, values in world.usual.items()
        if kind not in ("SOURCE", "TARGET", "TEXT_TOWER", item.io_type, f"LARGE_{item.io_type}", f"CLIP_{item.io_type}")
        for value in values.values()
    ]
    values = [value for value in (*LITERALS, *others, torch.ones(2, 2)) if not belongs(item, value)]
    return values + (
        [torch.ones(()), torch.ones(2, 2), torch.tensor([True, False])] if item.io_type == "SIGMAS" else []
    )


@st.composite
def usual_inputs(draw, node_id: str, world: World) -> dict[str, Shown]:
    return {item.id: draw(one(node_id, item, False, world)) for item in NODES[node_id].GET_SCHEMA().inputs}


@st.composite
def inputs(draw, node_id: str, then: tuple[str, ...], world: World) -> tuple[dict, dict]:
    """(the node's inputs, those of the run afterwards): the usual, but for at most two odd ones."""
    mine = NODES[node_id].GET_SCHEMA().inputs
    every = [(0, item) for item in mine] + [(1, RUNNING[name]) for name in then]
    odd = draw(st.sets(st.integers(0, len(every) - 1), max_size=2))
    given: tuple[dict, dict] = {}, {}
    for index, (which, item) in enumerate(every):
        if not item.optional or index in odd or draw(st.booleans()):
            given[which][item.id] = draw(one(node_id, item, index in odd, world))
    return given


def frozen(value):
    """A copy to compare with later; models and what is made of them stand for themselves."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: frozen(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(frozen, value)) if type(value) in (list, tuple) else value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: frozen(getattr(value, each.name)) for each in fields(value)}
    return value


def unchanged(before, value) -> bool:
    """Whether a value is still what `frozen` made of it."""
    if isinstance(value, Tensor):
        return before.shape == value.shape and before.dtype == value.dtype and torch.equal(
            before.nan_to_num() if value.is_floating_point() else before,
            value.nan_to_num() if value.is_floating_point() else value,
        )  # fmt: skip
    if isinstance(value, dict):
        return before.keys() == value.keys() and all(unchanged(before[key], value[key]) for key in value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return len(before) == len(value) and all(map(unchanged, before, value))
    if is_dataclass(value) and not isinstance(value, type):
        return all(unchanged(before[each.name], getattr(value, each.name)) for each in fields(value))
    return before is value or (isinstance(value, str | int | float) and before == value)
