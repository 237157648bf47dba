"""What gradient guidance reaches on the shapes: classifier only, CLIP text only, and inside a mask."""

import random

import numpy as np
import torch
from comfy.samplers import sampler_object
from PIL import Image

from ..files.classifier_file import read_classifier
from ..lab.comfy.runs import encode_texts, host_guider, run_seeded, sigmas_of
from ..lab.demo.contact_sheet import contact_sheet
from ..lab.models import stock
from ..lab.models.classifier.train import LABELS
from ..lab.weights import CLASSIFIER
from ..lab.world.data import SIZE
from ..lab.world.metrics import aggregate, grown, markdown_table, psnr
from ..lab.world.reader import read_image
from ..nodes.blended_diffusion import SteerBlendedSampler
from ..nodes.clip_guidance import SteerCLIPTextLoss
from ..nodes.gradient_guidance import SteerGradientGuider
from ..nodes.runs.classifier import ClassifierLoss
from .runner import FOLDER
from .turns import to_bytes

ASKED, SEEDS = 32, 2
CLASSIFIER_SCALE, CLIP_SCALE, CUTOUTS, SMALLEST = 16.0, 1000.0, 4, 0.9
SHEET = 8  # pictures of each row on the contact sheet
EULER, ANCESTRAL = "euler", "euler_ancestral"
TEXT_INSIDE, MASKED, MASKED_STEPS, UNGUIDED = "a red heart", 16, 50, "not guided"
BACKGROUNDS = "white", "black", "gray"
CLEAN = 0.8  # IoU with the template of its shape, of the one object there is
RECEPTIVE = 16  # pixels that the decoder looks away from a latent


def run() -> str:
    model, clip, vae = stock.load()
    plain = host_guider(model, encode_texts(clip, [""]), encode_texts(clip, [""]), 1.0)
    asked = random.Random(8).sample(LABELS[:-1], ASKED)
    labels = [label for label in asked for _ in range(SEEDS)]
    rows, sheet = [], []
    for name, loss_of, scale, through_model, sampler, steps in methods(vae):
        pictures = []
        for index, label in enumerate(asked):
            guider = plain
            if loss_of is not None:
                guider = SteerGradientGuider.execute(plain, loss_of(label, index), scale, 0.0, 1.0, through_model)[0]
            latent, sigmas = torch.zeros(SEEDS, 4, 16, 16), sigmas_of(model, steps)
            latent = run_seeded(guider, sampler_object(sampler), sigmas, latent, seed=index)
            pictures += list(to_bytes(vae.decode(latent)))
        found = aggregate(judged(*pair) for pair in zip(pictures, labels, strict=True))
        how = {"guided by": name, "scale": scale, "sampler": sampler, "steps": steps}
        rows.append({**how, **{key: f"{found[key]:.0%}" for key in found}})
        sheet += [(Image.fromarray(picture), f"{name}: {label}") for picture, label in
                  list(zip(pictures, labels, strict=True))[::SEEDS][:SHEET]]  # fmt: skip
    contact_sheet(sheet, FOLDER / "gradient_guidance.png", "Gradient guidance of the empty prompt", SHEET)
    return (
        f"# Gradient guidance\n\n## From the empty prompt\n\nThe empty prompt at cfg 1, so that nothing but the loss "
        f"asks for anything: {ASKED} of the 42 colours and shapes, {SEEDS} seeds each. Scheduler normal, max_change at "
        f"its default; CLIP is asked for the whole caption (`a red circle on a white background`), with {CUTOUTS} "
        f"cutouts, the smallest {SMALLEST:g} of the picture. Asked: colour and shape of the largest object are those "
        f"asked for. Shown: those of some object are. Clean: there is one object, and its IoU with the template of its "
        f"shape is above {CLEAN:g}.\n\n{markdown_table(rows)}\n{masked(plain, vae)}\n"
        "![sheet](gradient_guidance.png)"
    )


def methods(vae) -> list[tuple]:
    """(name, the loss for a label, scale, through_model, sampler, steps)"""
    pair, vision = stock.load_clip_pair()
    classifier = read_classifier(CLASSIFIER)
    base = ClassifierLoss.of(classifier, 0)

    def by_classifier(label, index):
        return ClassifierLoss(classifier, classifier.index(label), base.patchers)

    def by_text(label, index):
        text = f"a {label} on a {BACKGROUNDS[index % len(BACKGROUNDS)]} background"
        return SteerCLIPTextLoss.execute(vision, vae, pair, text, CUTOUTS, SMALLEST)[0]

    return [
        ("nothing", None, 0.0, False, EULER, 50),
        ("nothing", None, 0.0, False, ANCESTRAL, 100),
        ("classifier", by_classifier, CLASSIFIER_SCALE, False, EULER, 20),
        ("classifier", by_classifier, CLASSIFIER_SCALE, False, EULER, 50),
        ("CLIP text, through the model", by_text, CLIP_SCALE, True, ANCESTRAL, 100),
        ("CLIP text, to the estimate", by_text, CLIP_SCALE, False, ANCESTRAL, 100),
    ]


def judged(picture: np.ndarray, label: str, beyond: float = 0.0) -> dict:
    """What the picture shows of a label; objects whose middle lies before this column do not count."""
    color, shape = label.split()
    objs = [obj for obj in read_image(picture)["objs"] if obj["cx"] >= beyond]
    found = objs[0] if objs else {"color": None, "shape": None, "iou": 0.0}
    out = {"colour": found["color"] == color, "shape": found["shape"] == shape}
    shown = any(obj["color"] == color and obj["shape"] == shape for obj in objs)
    return {"asked": all(out.values()), "shown": shown, **out, "clean": len(objs) == 1 and found["iou"] > CLEAN}


def masked(plain, vae) -> str:
    """A text inside the right half, and how the left half changes."""
    pair, vision = stock.load_clip_pair()
    latent, sigmas = torch.zeros(1, 4, 16, 16), sigmas_of(plain.model_patcher, MASKED_STEPS)
    mask = torch.zeros(1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1
    outside = ~grown(mask[0].numpy() > 0.5, RECEPTIVE)
    loss = SteerCLIPTextLoss.execute(vision, vae, pair, TEXT_INSIDE, CUTOUTS, SMALLEST)[0]
    names = UNGUIDED, "no mask", "mask", "mask, Blended Diffusion Sampler"
    found, changed, shown = ({name: [] for name in names} for _ in range(3))
    for seed in range(MASKED):
        start = run_seeded(plain, sampler_object(ANCESTRAL), sigmas, latent, seed=seed)
        before = to_bytes(vae.decode(start)[0])
        for name in names:
            after = start
            if name != UNGUIDED:
                inside = mask if name.startswith("mask") else None
                guided = SteerGradientGuider.execute(plain, loss, CLIP_SCALE, 0.0, 1.0, True, inside)[0]
                blended = "Blended" in name
                sampler = sampler_object(ANCESTRAL)
                sampler = SteerBlendedSampler.execute(sampler, 0)[0] if blended else sampler
                given = (start, mask) if blended else (latent, None)
                after = run_seeded(guided, sampler, sigmas, *given, seed)
            after = to_bytes(vae.decode(after)[0])
            found[name].append(psnr(after, before, outside))
            changed[name].append(psnr(after, before, mask[0].numpy()))
            shown[name].append(judged(after, TEXT_INSIDE.removeprefix("a "), SIZE / 2)["shown"])
    rows = [
        {
            "": name,
            "PSNR outside, median": f"{np.median(found[name]):.1f} dB",
            "worst": f"{np.min(found[name]):.1f} dB",
            "inside, median": f"{np.median(changed[name]):.1f} dB",
            "shown": f"{np.mean(shown[name]):.0%}",
        }
        for name in found
    ]
    return (
        f"## Inside a mask\n\n{MASKED} runs from the empty prompt at cfg 1, {ANCESTRAL} in {MASKED_STEPS} steps, and "
        f"the text `{TEXT_INSIDE}` in the right half, through the model, scale {CLIP_SCALE:g}; PSNR against the run "
        f"without guidance of the same seed. Outside is the left half but for {RECEPTIVE} pixels next to the mask, "
        "which the decoder mixes. Shown: in that half. The mask bounds the change of each estimate; the model itself "
        "carries some of it over to the other half, which may then become another picture, unless Blended Diffusion "
        f"keeps that of the unguided run.\n\n{markdown_table(rows)}"
    )
