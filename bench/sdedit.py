"""SDEdit from discs in 16 scenes: our sigmas, the host's `denoise`, and diffusers' img2img on the same weights."""

import random

import comfy.samplers
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from ..lab.comfy.runs import counted, encode_texts, host_guider, run_seeded, with_pytorch_attention
from ..lab.models import stock
from ..lab.models.shapes_unet.diffusers_bridge import LATENT_SCALE, SCHEDULER
from ..lab.models.shapes_unet.diffusers_bridge import load as load_bridge
from ..lab.world.data import caption, render, sample_scene
from ..lab.world.metrics import attributes, markdown_table, mse
from ..nodes.ddim import SteerDDIMSampler
from ..nodes.sdedit import SteerSDEditSigmas
from .turns import in_turns, to_bytes

PICTURES, STEPS, CFG = 16, 40, 7.5  # diffusers' steps, of which it takes the share that the strength says
STRENGTHS = 0.3, 0.6, 0.8
LAST = 999  # the highest timestep


def run() -> str:
    model, clip, vae = stock.load()
    (model, calls), pipeline = counted(with_pytorch_attention(model)), load_pipeline()
    pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    problems = [problem(clip, vae, index) for index in range(PICTURES)]
    rows, starts = [], {}
    for strength in STRENGTHS:
        methods, starts[strength] = methods_at(model, pipeline, strength)
        results = {name: [] for name in methods}
        for name, given, latent, spent in in_turns(methods, problems, calls):
            results[name].append(judged(vae, given, latent) | spent)
        rows += [row(strength, name, starts[strength][name], values, results["diffusers img2img"])
                 for name, values in results.items()]  # fmt: skip
    return (
        f"# SDEdit\n\n{PICTURES} scenes of one or two objects, each object given as a disc of its colour and redrawn "
        f"at the caption's word, cfg {CFG:g}, deterministic steps, the same noise for all; both with PyTorch's "
        f"attention. diffusers is its StableDiffusionImg2ImgPipeline on the same weights with DDIM and {STEPS} steps. "
        "Start: the timestep, of 999, that the run starts from. Right: the reader finds all that the caption says. "
        "Kept: PSNR against the VAE round trip of what was given. Agreement: PSNR of the result against diffusers', of "
        "the mean error. Seconds in turns, over diffusers' (median of the pictures' ratios).\n\n"
        f"{markdown_table(rows)}\n"
        "It is the same method. diffusers' strength is the share of the steps that are taken, so its start lies a "
        "step's length below the strength times the last timestep, and moves with the number of steps; ours is the "
        "share of diffusion time, whatever the steps and the scheduler (the host's `denoise` comes near that for this "
        "scheduler). Started from diffusers' timestep, ours ends where diffusers does but for the last step: "
        "diffusers' DDIM ends at timestep 0, with a little noise left, ours at none."
    )


def problem(clip, vae, index: int) -> dict:
    """A caption, and its scene with a disc for every object."""
    scene = sample_scene(random.Random(12000 + index))
    discs = {**scene, "objs": [{**each, "shape": "circle"} for each in scene["objs"]]}
    latent = vae.encode(torch.from_numpy(render(discs).copy())[None].float() / 255)
    return {"latent": latent, "text": caption(scene), "round_trip": to_bytes(vae.decode(latent)[0]), "seed": index,
            "conds": [encode_texts(clip, [text]) for text in (caption(scene), "")]}  # fmt: skip


def load_pipeline() -> StableDiffusionImg2ImgPipeline:
    bridge = load_bridge()
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=bridge.vae, unet=bridge.unet, scheduler=DDIMScheduler(**SCHEDULER, set_alpha_to_one=False),
        text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def methods_at(model, pipeline, strength: float) -> tuple[dict, dict]:
    """By name: the latent that each method makes of a problem, and the timestep it starts from."""
    taken = int(STEPS * strength)
    pipeline.scheduler.set_timesteps(STEPS)
    theirs = int(pipeline.scheduler.timesteps[STEPS - taken])
    model_sampling = model.get_model_object("model_sampling")
    ddim, euler = SteerDDIMSampler.execute(0.0)[0], comfy.samplers.sampler_object("euler")
    host = comfy.samplers.KSampler(model, taken, "cpu", "euler", "normal", strength).sigmas
    ours, at_theirs = (SteerSDEditSigmas.execute(model, scheduler, taken, share)[0]
                       for scheduler, share in (("normal", strength), ("ddim_uniform", theirs / LAST)))  # fmt: skip
    runs = {
        "Steer": (ddim, ours),
        "Steer from diffusers' start, ddim_uniform": (ddim, at_theirs),
        "host, KSampler's denoise": (euler, host),
    }
    methods = {name: lambda given, run=run: steer(model, given, *run) for name, run in runs.items()}
    starts = {name: float(model_sampling.timestep(sigmas[0])) for name, (_, sigmas) in runs.items()}
    name = "diffusers img2img"
    return methods | {name: lambda given: img2img(pipeline, given, strength)}, starts | {name: theirs}


def steer(model, given: dict, sampler, sigmas):
    return run_seeded(host_guider(model, *given["conds"], CFG), sampler, sigmas, given["latent"], seed=given["seed"])


def img2img(pipeline, given: dict, strength: float):
    positive, negative = (cond[0][0] for cond in given["conds"])
    result = pipeline(
        image=given["latent"] * LATENT_SCALE, strength=strength, num_inference_steps=STEPS, guidance_scale=CFG,
        prompt_embeds=positive, negative_prompt_embeds=negative, output_type="latent",
        generator=torch.Generator().manual_seed(given["seed"]),
    )  # fmt: skip
    return result.images / LATENT_SCALE


def judged(vae, given: dict, latent) -> dict:
    picture = to_bytes(vae.decode(latent)[0])
    return {"picture": picture, "right": attributes(picture, given["text"])["all"],
            "kept": mse(picture, given["round_trip"])}  # fmt: skip


def row(strength: float, name: str, start: float, values: list[dict], theirs: list[dict]) -> dict:
    pairs = list(zip(values, theirs, strict=True))
    apart = np.mean([mse(a["picture"], b["picture"]) for a, b in pairs])
    return {
        "strength": f"{strength:g}",
        "method": name,
        "start": f"{start:.0f}",
        "model calls": f"{np.mean([value['calls'] for value in values]):.0f}",
        "right": f"{100 * np.mean([value['right'] for value in values]):.0f}%",
        "kept": f"{-10 * np.log10(np.mean([value['kept'] for value in values])):.1f} dB",
        "agreement": f"{-10 * np.log10(apart):.1f} dB" if values is not theirs else "",
        "seconds": f"{np.median([a['seconds'] / b['seconds'] for a, b in pairs]):.2f}",
    }
