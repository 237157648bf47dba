"""The small pictures at the top of the help pages, and the README's: before and after, with what changed in colour.

    make docs ARGS=pictures

They show what `make demo` left in lab/output, and some runs more that this makes: what comes out without a node,
or with another value. Written to web/docs/pictures/NODE.jpg and docs/jobs.jpg.
"""

from copy import deepcopy

from PIL import Image, ImageDraw, ImageFont

from ..comfy.server import Server
from ..demo.runner import OUTPUT, load_workflow, workflow_names
from ..package import ROOT
from ..world.inputs import write_inputs

PICTURES, JOBS_PICTURE = ROOT / "web" / "docs" / "pictures", ROOT / "docs" / "jobs.jpg"
MORE, EXAMPLES = OUTPUT / "help_pictures", ROOT / "example_workflows" / "pictures"
WIDTH, GAP, LINE = 480, 10, 23
TEXT, HEADING = ImageFont.load_default(18), ImageFont.load_default(21)
INK, CHANGED, PAPER, HOLE = "#1c1c1e", "#c8102e", "#ffffff", "#808080"


def _node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def _saved(source: list) -> dict:
    return _node("SaveImage", images=source, filename_prefix="steer/help")


REGION = {
    "29": _node("ImageColorToMask", image=["2", 0], color=0xE6194B),
    "3": _node("SteerRegion", mask=["29", 0], phrase="circle", strength=1.0),
    "31": _node("MaskToImage", mask=["29", 0]),
    "32": _saved(["31", 0]),
}
ONE_CIRCLE = {"text": "a red circle on a white background"}
TWO_WORDS = {
    "source": "a green star above a pink circle on a black background",
    "target": "a green star above a yellow square on a black background",
}
FREE = {"cross_end": 0.2, "self_end": 0.0}
RUNS = {  # NAME: (workflow, its inputs that change by node, nodes to add or replace); the pictures are NAME_1, ...
    "cfg_off": ("text_to_image", {"4": {"cfg": 1.0, "end_percent": 1.0}}, {}),
    "cfg_to_the_end": ("text_to_image", {"4": {"end_percent": 1.0}}, {}),
    "eta_1": ("text_to_image", {"6": {"eta": 1.0}}, {}),
    "captured": ("attention_maps", {}, {"12": _saved(["10", 0])}),
    "not_injected": ("attention_maps", {"14": {"model": ["1", 0]}}, {}),
    "not_shared": ("prompt_to_prompt", {"4": {"cross_end": 0.0, "self_end": 0.0}}, {}),
    "blended": (
        "prompt_to_prompt_local_blend",
        {"2": TWO_WORDS, "4": {"source_words": "pink circle", "target_words": "yellow square"}, "5": FREE}
        | {"6": {"batch_size": 2}, "12": {"batch_index": 3}, "13": {"batch_index": 1}},
        {},
    ),
    "not_blended": (
        "prompt_to_prompt_local_blend",
        {"2": TWO_WORDS, "5": FREE | {"edit": ["2", 2]}, "6": {"batch_size": 2}, "12": {"batch_index": 3}},
        {},
    ),
    "empty_negative": ("null_text", {"10": {"negative": ["3", 0]}, "11": {"negative": ["3", 0]}}, {}),
    "not_painted": ("paint_with_words", {"4": {"weight": 0.0}}, {}),
    "region": ("paint_with_words", {"4": ONE_CIRCLE}, REGION),
    "no_region": ("paint_with_words", {"4": ONE_CIRCLE | {"weight": 0.0}}, REGION),
    "noise": (
        "inversion",
        {},
        {
            "20": _node("AddNoise", model=["1", 0], noise=["8", 1], sigmas=["7", 0], latent_image=["8", 0]),
            "21": _node("LatentMultiply", samples=["20", 0], multiplier=1 / 14.6),
            "11": _node("VAEDecode", samples=["21", 0], vae=["1", 2]),
        },
    ),
    "lighter": (  # an edit whose colours are off, put back in three ways
        "background",
        {},
        {
            "29": _node("EmptyImage", width=128, height=128, batch_size=1, color=0xFFFFFF),
            "30": _node("ImageBlend", image1=["16", 0], image2=["29", 0], blend_factor=0.15, blend_mode="normal"),
            "17": _node("SteerStitch", source=["5", 0], edited=["30", 0], mask=["9", 0], feather=0),
            "18": _node("SteerStitch", source=["5", 0], edited=["30", 0], mask=["9", 0], feather=-8),
            "20": _node("SteerPoissonBlend", source=["5", 0], edited=["30", 0], mask=["9", 0]),
            "22": _saved(["17", 0]),
            "23": _saved(["18", 0]),
            "24": _saved(["20", 0]),
        },
    ),
}
STAR = (46, 64, 106, 124)  # of the background's star, in pixels: it shows what a VAE loses
BACKGROUND = [("photo", STAR, "source"), ("background_1", STAR, "the edit, as it decodes")]
PAGES = {  # by node, see panels: (picture, its part or None for all, caption); what changed stands between stars
    "SteerAttentionHeatmap": [("attention_maps_1", None, "")],
    "SteerBlendedSampler": [("inpaint", None, "the masked part"), ("blended_diffusion_1", None, "a *green star*")],
    "SteerCFGGuider": [
        ("cfg_off_4", None, "a red star: *cfg 1*"),
        ("cfg_to_the_end_4", None, "*cfg 5*"),
        ("text_to_image_4", None, "cfg 5 until *70%*"),
    ],
    "SteerCLIPImageLoss": [
        ("steer_example", None, "the example"),
        ("clip_guidance_image_4", None, "empty prompt"),
        ("clip_guidance_image_2", None, "*and the loss*"),
    ],
    "SteerCLIPTextLoss": [
        ("clip_guidance_4", None, "prompt: a star"),
        ("clip_guidance_2", None, "loss: *a green star*"),
    ],
    "SteerCaptureAttention": [
        ("captured_1", None, "the run"),
        ("attention_maps_1", (268, 0, 540, 308), "what it attended to"),
        ("attention_maps_2", None, "a later edit of it: *green star*"),
    ],
    "SteerCLIPDirectionLoss": [
        ("steer_example", None, "a yellow triangle"),
        ("clip_direction_2", None, "drawn anew"),
        ("clip_direction_1", None, "and *yellow > red*"),
    ],
    "SteerClassifierLoader": [
        ("classifier_3", None, "empty prompt"),
        ("classifier_1", None, "and its label *green star*"),
    ],
    "SteerClassifierLoss": [
        ("classifier_4", None, "empty prompt"),
        ("classifier_2", None, "and the label *green star*"),
    ],
    "SteerDDIMInversion": [
        ("photo", None, "the picture"),
        ("noise_1", None, "*its noise*"),
        ("inversion_1", None, "sampled from that noise"),
    ],
    "SteerDDIMSampler": [("cfg_to_the_end_1", None, "*eta 0*"), ("eta_1_1", None, "same seed, *eta 1*")],
    "SteerDepthLoss": [
        ("steer_example", None, "the depth of this"),
        ("depth_3", None, "without the loss"),
        ("depth_1", None, "*with its depth*"),
    ],
    "SteerDiffEditMask": [
        ("photo", None, "yellow star > *green star*"),
        ("diffedit_2", None, "where the prompts differ"),
        ("diffedit_3", None, "*the mask*"),
    ],
    "SteerDirectEditSampler": [
        ("photo", None, "a red heart"),
        ("direct_edit_prompt_to_prompt_1", None, "*blue heart*"),
        ("inpaint", None, "a mask on a red circle"),
        ("direct_edit_mask_1", None, "in it, a red *star*"),
    ],
    "SteerEditGuider": [("photo", None, "a yellow star"), ("direct_edit_1", None, "a *green* star")],
    "SteerCropOperator": [("measurement_uncrop_2", None, "a part"), ("measurement_uncrop_1", None, "*the whole*")],
    "SteerBlurOperator": [("measurement_blur_2", None, "blurred"), ("measurement_blur_1", None, "*sharp*")],
    "SteerGrayOperator": [("measurement_2", None, "gray"), ("measurement_1", None, "*in colours*")],
    "SteerJPEGOperator": [("measurement_jpeg_2", None, "a bad JPEG"), ("measurement_jpeg_1", None, "*cleaned*")],
    "SteerMeasurementLoss": [
        ("measurement_2", None, "gray"),
        ("measurement_1", None, "*in colours*"),
        ("measurement_small_2", None, "small"),
        ("measurement_small_1", None, "*drawn large*"),
    ],
    "SteerResizeOperator": [("measurement_small_2", None, "small"), ("measurement_small_1", None, "*drawn large*")],
    "SteerFrameMask": [
        ("clip_bridge_1", None, "given"),
        ("clip_bridge_2", None, "*new*"),
        ("clip_bridge_5", None, "*new*"),
        ("clip_bridge_6", None, "given"),
    ],
    "SteerGradientGuider": [
        ("gradient_guidance_3", None, "empty prompt"),
        ("gradient_guidance_1", None, "two losses: *red heart* and *black*"),
    ],
    "SteerInjectAttention": [
        ("captured_1", None, "captured: blue star"),
        ("not_injected_2", None, "not injected: *green star*"),
        ("attention_maps_2", None, "injected: *green star*"),
    ],
    "SteerLoadInversion": [
        ("inversion_file_save_1", None, "what was saved"),
        ("inversion_file_use_1", None, "from the file: *green star*"),
    ],
    "SteerLocalBlend": [
        ("blended_2", None, "pink circle, green star"),
        ("not_blended_1", None, "*yellow square*"),
        ("blended_1", None, "and only there: *yellow square*"),
    ],
    "SteerNullText": [
        ("photo", None, "the picture"),
        ("empty_negative_1", None, "at cfg 7.5, empty negative"),
        ("null_text_1", None, "at cfg 7.5, *null-text*"),
    ],
    "SteerPadFrames": [
        ("clip_continuation_1", None, "given"),
        ("clip_continuation_5", None, "given"),
        ("clip_continuation_6", None, "*new*"),
        ("clip_continuation_9", None, "*new*"),
    ],
    "SteerPadImage": [("outpaint", None, "given"), ("outpainting_1", None, "*made wider*")],
    "SteerPaintWithWords": [
        ("segmentation", None, "places for the words"),
        ("not_painted_2", None, "weight 0"),
        ("paint_with_words_2", None, "*weight 0.4*"),
    ],
    "SteerPaletteLoss": [
        ("strokes", None, "the colours"),
        ("palette_4", None, "without the loss"),
        ("palette_2", None, "*in these colours*"),
    ],
    "SteerPoissonBlend": [("lighter_1", None, "a lighter edit, pasted"), ("lighter_3", None, "*Poisson Blend*")],
    "SteerPromptEdit": [
        ("prompt_to_prompt_2", None, "a red heart"),
        ("prompt_to_prompt_1", None, "a *blue* heart"),
        ("prompt_to_prompt_refine_2", None, "a green circle"),
        ("prompt_to_prompt_refine_1", None, "a green circle *left of a red star*"),
    ],
    "SteerPromptToPromptGuider": [
        ("prompt_to_prompt_2", None, "a red heart"),
        ("not_shared_1", None, "same seed: *blue*"),
        ("prompt_to_prompt_1", None, "by this guider: *blue*"),
    ],
    "SteerRePaintSampler": [("inpaint", None, "the masked part"), ("repaint_1", None, "a *green star*")],
    "SteerLangevinSampler": [("inpaint", None, "the masked part"), ("langevin_1", None, "a *green star*")],
    "SteerReconstructDecoder": [*BACKGROUND, ("background_5", STAR, "by the *fitted decoder*")],
    "SteerReconstructLatent": [*BACKGROUND, ("background_4", STAR, "the *fitted latent*")],
    "SteerRegion": [
        ("region_5", None, "a place for *circle*"),
        ("no_region_2", None, "without"),
        ("region_2", None, "with the region"),
    ],
    "SteerRegionsFromSegmentation": [
        ("segmentation", None, "#e6194b: red circle #4363d8: blue star"),
        ("paint_with_words_4", None, "*painted with words*"),
    ],
    "SteerSDEditSigmas": [
        ("strokes", None, "strokes"),
        ("sdedit_1", None, "strength *0.05*"),
        ("sdedit_2", None, "strength *0.5*"),
        ("sdedit_3", None, "strength *1*"),
    ],
    "SteerSaveInversion": [
        ("photo", None, "the picture"),
        ("noise_1", None, "*its noise, kept in a file*"),
        ("inversion_file_save_1", None, "sampled from it"),
    ],
    "SteerStitch": [("lighter_1", None, "feather *0*"), ("lighter_2", None, "feather *-8*")],
    "SteerStyleLoss": [
        ("strokes", None, "the style"),
        ("style_3", None, "without the loss"),
        ("style_1", None, "*in this style*"),
    ],
    "SteerTrajectoryBlendSampler": [
        ("photo", None, "the picture"),
        ("diffedit_3", None, "the mask"),
        ("diffedit_1", None, "*green star*"),
    ],
}
JOBS = {  # by job: before, after and the caption of each
    "Edit a photo by words": ("photo", "red heart", "prompt_to_prompt_inversion_1", "*blue* heart"),
    "Inpaint": ("inpaint", "a hole", "langevin_1", "*green star*"),
    "Outpaint": ("outpaint", "a narrow picture", "outpainting_1", "*red circle*"),
    "Find and replace": ("photo", "yellow star", "diffedit_1", "*green* star"),
    "Redraw": ("strokes", "strokes", "sdedit_2", "*red heart*"),
    "Place words": ("segmentation", "two places", "paint_with_words_2", "*both in place*"),
}


def main() -> None:
    """Run what `make demo` does not, and write all pictures. FileNotFoundError where that was not run before."""
    MORE.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    write_inputs(MORE)
    with Server() as server:
        write_inputs(server.input_folder)
        for name, (workflow, inputs, nodes) in RUNS.items():
            saved = server.images(server.run(changed(load_workflow(workflow), inputs, nodes)))
            for number, (_, picture) in enumerate(sorted(saved, key=lambda item: int(item[0])), 1):
                picture.save(MORE / f"{name}_{number}.png")
    for node in sorted(path.stem for path in PICTURES.parent.glob("*.md")):
        save(strip([(_part(name, box), caption) for name, box, caption in panels(node)]), PICTURES / f"{node}.jpg")
    save(jobs_picture(), JOBS_PICTURE)


def panels(node: str) -> list[tuple[str, tuple | None, str]]:
    """What the picture of a node shows: as PAGES says, or else what the smallest workflow with the node saved."""
    if node in PAGES:
        return PAGES[node]
    graphs = {name: load_workflow(name) for name in workflow_names()}
    using = [name for name, graph in graphs.items() if any(entry["class_type"] == node for entry in graph.values())]
    if not using:
        raise FileNotFoundError(f"no workflow in example_workflows/api has {node}, which its help page could show")
    name = min(using, key=lambda name: len(graphs[name]))
    savers = sorted(
        (int(number), entry) for number, entry in graphs[name].items() if entry["class_type"] == "SaveImage"
    )
    return [(f"{name}_{count}", None, entry["_meta"]["title"]) for count, (_, entry) in enumerate(savers, 1)]


def changed(prompt: dict, inputs: dict, nodes: dict) -> dict:
    """The prompt with other inputs and other nodes."""
    prompt = deepcopy(prompt)
    for node, values in inputs.items():
        prompt[node]["inputs"] |= values
    return prompt | nodes


def strip(panels: list[tuple[Image.Image, str]], width: int = WIDTH) -> Image.Image:
    """The (picture, caption) pairs side by side, as large as `width` pixels allow; captions in up to three lines."""
    side = (width - GAP * (len(panels) - 1)) // len(panels)
    captions = [_lines(caption, side) for _, caption in panels]
    shown = [_fitted(picture, side) for picture, _ in panels]
    height = max(picture.height for picture in shown)
    image = Image.new("RGB", (width, height + max(map(len, captions)) * LINE + 6), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (picture, lines) in enumerate(zip(shown, captions, strict=True)):
        left = number * (side + GAP)
        image.paste(picture, (left + (side - picture.width) // 2, (height - picture.height) // 2))
        for row, words in enumerate(lines):
            x = left
            for word, ink in words:
                draw.text((x, height + 2 + row * LINE), word, ink, TEXT)
                x += TEXT.getlength(word + " ")
    return image


def jobs_picture() -> Image.Image:
    """The README's: each job's name over its before and after, three in a row."""
    width, top = 290, 28
    cells = [strip([(_part(a, None), first), (_part(b, None), then)], width) for a, first, b, then in JOBS.values()]
    height = max(cell.height for cell in cells) + top + GAP
    image = Image.new("RGB", (3 * width + 4 * GAP * 2, height * (len(cells) // 3)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (job, cell) in enumerate(zip(JOBS, cells, strict=True)):
        left, y = 2 * GAP + number % 3 * (width + 2 * GAP), number // 3 * height
        draw.text((left, y + 2), job, INK, HEADING)
        image.paste(cell, (left, y + top))
    return image


def save(picture: Image.Image, path) -> None:
    """As a JPEG whose flat colours stay clean."""
    picture.save(path, quality=85, subsampling=0, optimize=True)


def _part(name: str, box: tuple | None) -> Image.Image:
    path = next((path for folder in (MORE, OUTPUT, EXAMPLES) for path in folder.glob(f"{name}.*")), None)
    if path is None:
        raise FileNotFoundError(f"{name}.png is not in {OUTPUT}: run `make demo` first")
    picture = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, HOLE), picture).convert("RGB").crop(box)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    return picture.resize(tuple(round(length * scale) for length in picture.size), Image.Resampling.LANCZOS)


def _lines(caption: str, width: int) -> list[list[tuple[str, str]]]:
    """The caption's words with their inks, broken into lines; what stands between stars is in the colour of change."""
    lines, ink, room = [], INK, width
    for word in caption.split():
        ink = CHANGED if word.startswith("*") else ink
        text = word.replace("*", "")
        if not lines or TEXT.getlength(text) > room:
            lines.append([])
            room = width
        lines[-1].append((text, ink))
        room -= TEXT.getlength(text + " ")
        ink = INK if word.endswith("*") else ink
    return lines
