"""The table of the templates: what each swaps of its API form, what it says, and where its models are.

Read by `lab.docs.templates`.
"""

from dataclasses import dataclass, field

from ..weights import CHECKPOINT

Wire = list  # [node id, output number]


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint: what it is called, its file, the side of its pictures, what it wants of some nodes."""

    name: str
    checkpoint: str
    size: int
    inputs: dict[str, dict] = field(default_factory=dict)
    """By node class, in place of the template's own."""
    hint: str = ""
    loaders: tuple[tuple[str, dict], ...] = ()
    """Of model, text encoder and autoencoder, where these are files of their own and `checkpoint` is the model's."""
    frames: int = 0
    """Of a model of clips, how many a template draws."""

    @property
    def pixels(self) -> str:
        """The size of its pictures, as words."""
        clip = self.inputs.get("EmptyHunyuanLatentVideo")
        return f"{clip['width']} x {clip['height']}" if clip else str(self.size)

    @property
    def megapixels(self) -> float:
        """What pictures are scaled to."""
        clip = self.inputs.get("EmptyHunyuanLatentVideo", {"width": self.size, "height": self.size})
        return clip["width"] * clip["height"] / 1024**2


SD15 = Family("SD1.5", "v1-5-pruned-emaonly-fp16.safetensors", 512)
SDXL = Family("SDXL", "sd_xl_base_1.0.safetensors", 1024)
FLUX = Family(
    "Flux",
    "flux1-dev-fp8.safetensors",
    1024,
    {
        "SteerCFGGuider": {"cfg": 1.0},
        "BasicScheduler": {"scheduler": "simple"},
        "SteerSDEditSigmas": {"scheduler": "simple"},
    },
    " Flux has its guidance built in, so *cfg* stays at 1, and there the negative prompt does nothing.",
)
ZIMAGE = Family(
    "Z-Image",
    "z_image_turbo_bf16.safetensors",
    1024,
    {"SteerCFGGuider": {"cfg": 1.0}, "BasicScheduler": {"scheduler": "simple", "steps": 9}},
    " Z-Image Turbo has its guidance built in, so *cfg* stays at 1, and there the negative prompt does nothing.",
    (
        ("UNETLoader", {"unet_name": "z_image_turbo_bf16.safetensors", "weight_dtype": "default"}),
        ("CLIPLoader", {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2", "device": "default"}),
        ("VAELoader", {"vae_name": "ae.safetensors"}),
    ),
)
QWEN = Family(
    "Qwen-Image",
    "qwen_image_fp8_e4m3fn.safetensors",
    1024,
    {
        "SteerCFGGuider": {"cfg": 4.0},
        "BasicScheduler": {"scheduler": "simple", "steps": 20},
        "SteerSDEditSigmas": {"scheduler": "simple"},
    },
    "",
    (
        ("UNETLoader", {"unet_name": "qwen_image_fp8_e4m3fn.safetensors", "weight_dtype": "default"}),
        (
            "CLIPLoader",
            {"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image", "device": "default"},
        ),
        ("VAELoader", {"vae_name": "qwen_image_vae.safetensors"}),
    ),
)
WAN = Family(
    "Wan",
    "wan2.1_t2v_1.3B_fp16.safetensors",
    512,
    {
        "SteerCFGGuider": {"cfg": 6.0},
        "BasicScheduler": {"scheduler": "simple", "steps": 30},
        "EmptyHunyuanLatentVideo": {"width": 832, "height": 480, "batch_size": 1},
    },
    " Of a clip: of 33 frames here.",
    (
        ("UNETLoader", {"unet_name": "wan2.1_t2v_1.3B_fp16.safetensors", "weight_dtype": "default"}),
        ("CLIPLoader", {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan", "device": "default"}),
        ("VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
    ),
    frames=33,
)
TOY = Family("the shapes checkpoint", CHECKPOINT.name, 128)

MODELS = {
    SD15.checkpoint: (
        "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
        "checkpoints",
    ),
    SDXL.checkpoint: (
        "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        "checkpoints",
    ),
    FLUX.checkpoint: ("Comfy-Org/flux1-dev/resolve/main/flux1-dev-fp8.safetensors", "checkpoints"),
    "z_image_turbo_bf16.safetensors": (
        "Comfy-Org/z_image_turbo/resolve/main/split_files/diffusion_models/z_image_turbo_bf16.safetensors",
        "diffusion_models",
    ),
    "qwen_3_4b.safetensors": (
        "Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders/qwen_3_4b.safetensors",
        "text_encoders",
    ),
    "ae.safetensors": ("Comfy-Org/z_image_turbo/resolve/main/split_files/vae/ae.safetensors", "vae"),
    "qwen_image_fp8_e4m3fn.safetensors": (
        "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models/qwen_image_fp8_e4m3fn.safetensors",
        "diffusion_models",
    ),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": (
        "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
        "text_encoders",
    ),
    "qwen_image_vae.safetensors": (
        "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae/qwen_image_vae.safetensors",
        "vae",
    ),
    "wan2.1_t2v_1.3B_fp16.safetensors": (
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
        "diffusion_models",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "text_encoders",
    ),
    "wan_2.1_vae.safetensors": (
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors",
        "vae",
    ),
    "512-inpainting-ema.safetensors": (
        "Comfy-Org/stable_diffusion_2.1_repackaged/resolve/main/512-inpainting-ema.safetensors",
        "checkpoints",
    ),
    "depth_anything_3_mono_large.safetensors": (
        "Comfy-Org/Depth-Anything-3/resolve/main/geometry_estimation/depth_anything_3_mono_large.safetensors",
        "geometry_estimation",
    ),
    "clip_vision_g.safetensors": ("comfyanonymous/clip_vision_g/resolve/main/clip_vision_g.safetensors", "clip_vision"),
    "clip_g.safetensors": (
        "Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_g.safetensors",
        "text_encoders",
    ),
    "control_v11p_sd15_scribble_fp16.safetensors": (
        "comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_scribble_fp16.safetensors",
        "controlnet",
    ),
    # with the ending that the editor knows: of this file's kind it offers this one alone
    "t2iadapter_depth_sd14v1.pth": (
        "TencentARC/T2I-Adapter/resolve/main/models/t2iadapter_depth_sd14v1.pth?download=true",
        "controlnet",
    ),
    "blindbox_v1_mix.safetensors": (
        "https://civitai.com/api/download/models/32988?type=Model&format=SafeTensor&size=full&fp=fp16",
        "loras",
    ),
}
"""Where the models are that the editor offers to download: the path at Hugging Face or a whole address, the folder."""


@dataclass(frozen=True)
class Thumbnail:
    """Before, if anything, and after, and what changed: files of lab/output, or inputs of the demo by their name."""

    before: str
    after: str
    words: str


@dataclass(frozen=True)
class Template:
    """What users see of a workflow.

    `what`, `load`, `describe`, `knobs` are its note; `main` the node whose help page that links to; `swaps` the inputs
    that differ from the API form, by node; `titles` what stands behind the names of nodes, where the API form's title
    does not fit; `compare` the wires of the picture before and after.
    """

    name: str
    api: str
    what: str
    load: str
    describe: str
    knobs: tuple[str, ...]
    main: str
    swaps: dict[str, dict]
    titles: dict[str, str]
    thumbnail: Thumbnail
    compare: tuple[Wire, Wire] | None = None
    family: Family = SD15
    editions: tuple[Family, ...] = ()
    scaled: bool = True
    """Whether pictures that are encoded are brought to the checkpoint's size first."""
    classes: dict[str, str] = field(default_factory=dict)
    """Other classes of nodes than the API form's; such a node has just the inputs in `swaps`."""

    @property
    def heading(self) -> str:
        """The name without its number and without what stands in brackets."""
        return self.name.split(" - ")[1].split(" (")[0]

    def of(self, family: Family) -> "Template":
        """The edition for another kind of checkpoint."""
        return Template(**{**self.__dict__, "name": f"{self.name}, {family.name}", "family": family, "editions": ()})


PHOTO = "your picture in *Load Image*. Any size will do, it is scaled."
HOLE = (
    "your picture in *Load Image*, then right-click it, *Open in MaskEditor*, and paint over what is to be filled. "
    "The example has a hole already."
)
ANEW = "*strength*: does it lack detail? Raise it to 0.6. Is something in it that was not there? Lower it to 0.3."
P2P = ("*self_end*: the shape does not change? Lower it to 0.2. Too much changes? Raise it to 0.6.",)
STRENGTH = "*strength*: how far from the picture, 0 to 1. More follows the prompt, less keeps the picture."
CFG = "*cfg*: higher follows the prompt more closely, up to about 10."
REFINE = "*refine*: more makes the inversion more exact, and slower. What it came to is shown in *DDIM Inversion*."

CAT, TIGER = "a photo of a cat", "a photo of a tiger"
COFFEE = "a red cup of coffee on a wooden table"
STRAWBERRIES = "a red cup full of strawberries on a wooden table"
MOVING_DOWN = "the camera moves down over a red cup of coffee on a wooden table"
CLIP = (
    "your clip in *Load Image*, an animated picture of any size; of a video take *Load Video* and *Get Video "
    "Components* in its place."
)
CLIP_TOWERS = {"text": {"clip_name": "clip_g.safetensors"}, "vision": {"clip_name": "clip_vision_g.safetensors"}}

TABLE: tuple[Template, ...] = (
    Template(
        "Steer 01 - Edit a photo by words (Prompt-to-Prompt)",
        "prompt_to_prompt_inversion",
        "Change a word of what a photo shows: the cat becomes a tiger, everything else stays as it is. The photo is "
        "turned back into noise first (DDIM Inversion), then drawn again with both prompts side by side.",
        PHOTO,
        "in *Prompt Edit*, `source` says what the photo shows, `target` is the same sentence with your change.",
        (
            *P2P,
            "*cross_end*: does the edit drift from the photo? Raise it to 0.9. Does the new word not show? Lower it "
            "to 0.5.",
        ),
        "SteerPromptToPromptGuider",
        {"2": {"source": CAT, "target": TIGER}, "4": {"image": "steer_cat.webp"}},
        {"15": "the edit", "16": "the photo given back", "13": "the edit", "14": "the photo given back"},
        Thumbnail("prompt_to_prompt_inversion_2", "prompt_to_prompt_inversion_1", "red > blue"),
        (["4", 0], ["13", 0]),
        editions=(SDXL,),
    ),
    Template(
        "Steer 02 - Edit a generated picture by words (Prompt-to-Prompt)",
        "prompt_to_prompt",
        "Draw a picture, and the same picture with a word changed: apples become oranges in the same basket.",
        "only the checkpoint; the picture is drawn from its prompt.",
        "in *Prompt Edit*, `source` is the picture's prompt, `target` the same sentence with your change.",
        (*P2P, "*noise_seed*: another picture."),
        "SteerPromptEdit",
        {
            "2": {"source": "a basket full of apples on a table", "target": "a basket full of oranges on a table"},
            "4": {"cfg": 7.5},
        },
        {"11": "the edit", "12": "the source", "13": "the edit", "14": "the source"},
        Thumbnail("prompt_to_prompt_2", "prompt_to_prompt_1", "red > blue"),
        (["12", 0], ["11", 0]),
    ),
    Template(
        "Steer 03 - Inpaint (RePaint)",
        "repaint",
        "Fill a hole in a picture with what a prompt says, so that it fits what is around it.",
        HOLE,
        "in *Positive prompt*, what the whole picture is to show, not only the hole.",
        (
            "*resamples*: 1 is quick and fits worse, 10 as published. The time grows with it.",
            "*Steer 32* fits better, in a quarter of the calls.",
            CFG,
        ),
        "SteerRePaintSampler",
        {"2": {"text": STRAWBERRIES}, "4": {"cfg": 7.5}, "5": {"image": "steer_coffee_hole.webp"}},
        {"13": "the filled picture"},
        Thumbnail("inpaint", "repaint_1", "fill the hole"),
        (["5", 0], ["12", 0]),
        editions=(SDXL, FLUX),
    ),
    Template(
        "Steer 04 - Outpaint (Langevin)",
        "outpainting",
        "Add to a picture at its sides: what is new goes on from what is there.",
        PHOTO,
        "in *Positive prompt*, what the whole picture is to show; in *Pad Image*, how many pixels each side gets.",
        (
            "*momentum*: 0.5 is calmer where what is new is large.",
            "*inner*: 3 is quicker, 9 fits better. The time grows with it.",
        ),
        "SteerLangevinSampler",
        {
            "2": {"text": "a rocket on its launch pad at dusk"},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_rocket.webp"},
        },
        {"14": "the wider picture", "6": "to the right"},
        Thumbnail("outpaint", "outpainting_1", "wider"),
        (["6", 0], ["13", 0]),
        editions=(SDXL, FLUX),
    ),
    Template(
        "Steer 05 - Find and replace (DiffEdit)",
        "diffedit",
        "Replace one thing in a photo without painting a mask: the mask is found from where two prompts disagree. "
        "Outside it the photo stays.",
        PHOTO,
        "the first prompt says what the photo shows, the second what it is to show.",
        (
            "*threshold* of *DiffEdit Mask*: does the mask take in too much? Raise it. Is something missing? Lower it.",
            "*strength*: how far the found part may change, 0.6 to 1.",
        ),
        "SteerDiffEditMask",
        {
            "2": {"text": "a photo of an astronaut in an orange suit"},
            "3": {"text": "a photo of an astronaut in a blue suit"},
            "5": {"image": "steer_astronaut.webp"},
            "13": {"cfg": 5.0},
        },
        {"18": "the edit", "19": "where the prompts disagree", "21": "the mask, white is edited"},
        Thumbnail("photo", "diffedit_1", "yellow > green"),
        (["5", 0], ["17", 0]),
        editions=(SDXL,),
    ),
    Template(
        "Steer 06 - Redraw, image to image (SDEdit)",
        "sdedit",
        "Turn strokes or a photo into a picture of what a prompt says. Three strengths side by side: from close to "
        "what "
        "was painted to only its layout.",
        "a painting or a photo in *Load Image*. Any size will do, it is scaled.",
        "in *Positive prompt*, what the strokes are meant to be.",
        (STRENGTH, "*noise_seed*: another picture from the same strokes."),
        "SteerSDEditSigmas",
        {
            "2": {"text": "a photo of a cottage with a red roof on a green meadow"},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_strokes.webp"},
            "9": {"strength": 0.4, "steps": 30},
            "13": {"strength": 0.6, "steps": 30},
            "17": {"strength": 0.8, "steps": 30},
        },
        {
            "5": "the strokes",
            "9": "close",
            "10": "close",
            "12": "close to the strokes",
            "13": "between",
            "14": "between",
            "16": "between",
            "17": "free",
            "18": "free",
            "20": "only the layout",
        },
        Thumbnail("strokes", "sdedit_2", "strength 0.5"),
        (["5", 0], ["15", 0]),
        editions=(SDXL, FLUX),
    ),
    Template(
        "Steer 07 - Place words, regional prompt (Paint with Words)",
        "paint_with_words",
        "Say where in the picture each thing is: paint its place in a colour.",
        "paint in *Painter*: a colour for each thing, on white. Painting needs Nodes 2.0 (in the ComfyUI menu); "
        "without it there is the template *from a colour map*.",
        "in *Regions from Segmentation*, a line for each colour with words of the prompt; in *Paint with Words*, the "
        "prompt.",
        (
            "*weight*: a thing is not in its place? Raise it to 0.6. The picture is spoilt? Lower it to 0.2.",
            "*strength*, behind the words (`#e6194b: cat @ 2`): pulls one thing more than another.",
        ),
        "SteerPaintWithWords",
        {
            "2": {"mask": "steer_map.png [input]", "width": 512, "height": 512, "bg_color": "#ffffff"},
            "3": {"legend": "#e6194b: cat\n#4363d8: dog"},
            "4": {"text": "a photo of a cat and a dog sitting on the grass"},
            "6": {"cfg": 7.5},
            "7": {"batch_size": 2},
        },
        {"2": "paint the places", "13": "the picture"},
        Thumbnail("segmentation", "paint_with_words_1", "paint the places"),
        editions=(FLUX, ZIMAGE, QWEN, WAN),
        classes={"2": "Painter"},
    ),
    Template(
        "Steer 08 - See where each word is (attention heatmap)",
        "attention_maps",
        "See which word of a prompt painted which part of the picture, then draw it again with a word changed while it "
        "attends to the same places.",
        "only the checkpoint; the picture is drawn from its prompt.",
        "in *Prompt Edit*, the prompt and its change; in *Attention Heatmap*, the same prompt and the words to look "
        "at.",
        (
            "*words*: separated by commas, words next to each other together (`red car`).",
            "*self_end* of *Inject Attention*: does the shape not change? Lower it to 0.2.",
        ),
        "SteerAttentionHeatmap",
        {
            "2": {
                "source": "a red car next to a green tree",
                "target": "a blue car next to a green tree",
            },
            "4": {"cfg": 7.5},
            "11": {"text": "a red car next to a green tree", "words": "red car, green tree"},
            "14": {"cfg": 7.5},
        },
        {"12": "where each word is", "17": "the edit"},
        Thumbnail("", "attention_maps_1", "red circle, blue star"),
        (["10", 0], ["16", 0]),
    ),
    Template(
        "Steer 09 - Follow a text with CLIP guidance",
        "clip_guidance",
        "Draw a picture from a prompt, and pull it towards a second text with CLIP while it is drawn.",
        "the checkpoint and the two halves of CLIP; they must belong together, as these do.",
        "in *Prompt*, the picture; in *CLIP Text Loss*, what it is to come close to.",
        (
            "*scale*: how hard CLIP pulls. Raise it until the text shows, lower it when the picture breaks up.",
            "*cutouts*: more is steadier and slower.",
        ),
        "SteerCLIPTextLoss",
        {
            "2": {"text": "a landscape with a lake"},
            "4": {"cfg": 5.0},
            "5": CLIP_TOWERS["text"],
            "6": CLIP_TOWERS["vision"],
            "7": {"text": "an oil painting of a stormy sea", "cutouts": 8, "smallest_cutout": 0.5},
            "8": {"scale": 300.0},
            "9": {"batch_size": 1},
        },
        {"15": "with CLIP guidance", "18": "without"},
        Thumbnail("clip_guidance_3", "clip_guidance_1", "+ a green star"),
        (["17", 0], ["14", 0]),
    ),
    Template(
        "Steer 10 - Keep the background of an edit",
        "background",
        "An edit changes the background too, if only a little: every picture goes through the VAE. Four ways to get it "
        "back, side by side. *Stitch* and *Poisson Blend* are quick and work on pixels; the other two fit the latent "
        "or "
        "the decoder to the photo.",
        PHOTO,
        "in *Positive prompt*, what the edited part is to show; the mask is the rectangle of the two *Solid Mask*.",
        (
            "*feather* of *Stitch*: the width of the soft rim; below 0 it lies inside the mask.",
            "*steps* of *Reconstruct Background*: more comes closer to the photo, and takes longer.",
        ),
        "SteerStitch",
        {
            "2": {"text": STRAWBERRIES},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_coffee.webp"},
            "8": {"width": 344, "height": 328},
            "9": {"x": 88, "y": 0},
        },
        {
            "22": "the edit as it decodes",
            "23": "stitched",
            "24": "Poisson blended",
            "25": "the latent fitted",
            "26": "the decoder fitted",
        },
        Thumbnail("photo", "background_2", "heart > circle"),
        (["5", 0], ["17", 0]),
    ),
    Template(
        "Steer 11 - Negative prompt and guidance interval (CFG)",
        "text_to_image",
        "Draw a picture from a prompt, away from a negative prompt, with guidance only in part of the run: more "
        "natural "
        "colours, and less time.",
        "only the checkpoint.",
        "in *Positive prompt*, what to show; in *Negative prompt*, what to avoid.",
        (
            CFG,
            "*end_percent*: where guidance ends. 1 guides to the end; at 0.7 the last third costs half the time.",
        ),
        "SteerCFGGuider",
        {
            "2": {"text": "a photo of an astronaut riding a horse"},
            "3": {"text": "blurry, low quality"},
            "4": {"cfg": 7.5},
            "5": {"batch_size": 2},
        },
        {"11": "the picture"},
        Thumbnail("text_to_image_2", "text_to_image_1", "two seeds"),
    ),
    Template(
        "Steer 12 - Invert a photo and get it back (DDIM inversion)",
        "inversion",
        "Find the noise that a photo comes from, and draw the photo from it again. Every edit of a photo starts "
        "here: if "
        "it does not come back, an edit cannot keep it.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows.",
        (REFINE, "*steps*: more makes the inversion more exact, and slower."),
        "SteerDDIMInversion",
        {"2": {"text": CAT}, "4": {"image": "steer_cat.webp"}},
        {"12": "the photo given back"},
        Thumbnail("photo", "inversion_1", "there and back"),
        (["4", 0], ["11", 0]),
    ),
    Template(
        "Steer 07 - Place words, regional prompt (Paint with Words), from a colour map",
        "paint_with_words",
        "Say where in the picture each thing is, with a picture that has a colour for each thing.",
        "a map of plain colours in *Load Image*, drawn in any program.",
        "in *Regions from Segmentation*, a line for each colour with words of the prompt; in *Paint with Words*, the "
        "prompt.",
        (
            "*weight*: a thing is not in its place? Raise it to 0.6. The picture is spoilt? Lower it to 0.2.",
            "*strength*, behind the words (`#e6194b: cat @ 2`): pulls one thing more than another.",
        ),
        "SteerRegionsFromSegmentation",
        {
            "2": {"image": "steer_map.png"},
            "3": {"legend": "#e6194b: cat\n#4363d8: dog"},
            "4": {"text": "a photo of a cat and a dog sitting on the grass"},
            "6": {"cfg": 7.5},
            "7": {"batch_size": 2},
        },
        {"2": "the colour map", "13": "the picture"},
        Thumbnail("segmentation", "paint_with_words_1", "from a map"),
        editions=(FLUX, ZIMAGE, QWEN, WAN),
    ),
    Template(
        "Steer 13 - Edit a photo by words with a fitted negative (null-text)",
        "prompt_to_prompt_null_text",
        "As *Steer 01*, as first published: the negative prompt is fitted to the photo, so that it comes back under "
        "full "
        "guidance. Slower than *Steer 01*, which keeps the photo at least as well.",
        PHOTO,
        "in *Prompt Edit*, `source` says what the photo shows, `target` is the same sentence with your change.",
        (*P2P, "*inner_steps*: more fits the negative better, and takes longer."),
        "SteerNullText",
        {"2": {"source": CAT, "target": TIGER}, "4": {"image": "steer_cat.webp"}},
        {"16": "the edit", "17": "the photo given back", "14": "the edit", "15": "the photo given back"},
        Thumbnail("prompt_to_prompt_null_text_2", "prompt_to_prompt_null_text_1", "red > blue"),
        (["4", 0], ["14", 0]),
    ),
    Template(
        "Steer 14 - Add words to a generated picture (Prompt-to-Prompt)",
        "prompt_to_prompt_refine",
        "Draw a picture, and the same picture with words added to its prompt.",
        "only the checkpoint; the picture is drawn from its prompt.",
        "in *Prompt Edit*, `source` is the picture's prompt, `target` the same words and more.",
        (*P2P, "*cross_end*: do the new words not show? Lower it to 0.5."),
        "SteerPromptEdit",
        {
            "2": {
                "source": "a photo of a house on a hill",
                "target": "a photo of a house on a hill in winter, covered in snow",
            },
            "4": {"cfg": 7.5, "self_end": 0.4},
        },
        {"11": "the edit", "12": "the source", "13": "the edit", "14": "the source"},
        Thumbnail("prompt_to_prompt_refine_2", "prompt_to_prompt_refine_1", "+ a red star"),
        (["12", 0], ["11", 0]),
    ),
    Template(
        "Steer 15 - Make words weaker or stronger (Prompt-to-Prompt)",
        "prompt_to_prompt_reweight",
        "Draw a picture, and the same picture with a word of its prompt made weaker or stronger.",
        "only the checkpoint; the picture is drawn from its prompt.",
        "in *Prompt Edit*, the same prompt twice; in `equalizer`, words and their factor.",
        (
            "*equalizer*: `fog: 0` takes a word's attention away, `fog: 4` makes it four times as strong.",
            "*cross_end*: 1 keeps the rest closest to the source.",
        ),
        "SteerPromptEdit",
        {
            "2": {
                "source": "a forest path in thick fog",
                "target": "a forest path in thick fog",
                "equalizer": "thick: 0, fog: 0",
            },
            "4": {"cfg": 7.5},
        },
        {"11": "reweighted", "12": "the source", "13": "reweighted", "14": "the source"},
        Thumbnail("prompt_to_prompt_reweight_2", "prompt_to_prompt_reweight_1", "blue star: 0"),
        (["12", 0], ["11", 0]),
    ),
    Template(
        "Steer 16 - Edit only where a word is (local blend)",
        "prompt_to_prompt_local_blend",
        "As *Steer 02*, and everything outside the place of the changed word is kept to the pixel of the latent.",
        "only the checkpoint; the picture is drawn from its prompt.",
        "in *Prompt Edit*, the prompt and its change; in *Local Blend*, the words whose place may change.",
        (
            "*threshold*: does too much change? Raise it. Is the new thing cut off? Lower it.",
            *P2P,
        ),
        "SteerLocalBlend",
        {
            "2": {
                "source": "a photo of a dog sitting on a sofa",
                "target": "a photo of a cat sitting on a sofa",
            },
            "4": {"source_words": "dog", "target_words": "cat"},
            "5": {"cfg": 7.5},
        },
        {"12": "the edit", "13": "the source", "14": "the edit", "15": "the source"},
        Thumbnail("prompt_to_prompt_local_blend_2", "prompt_to_prompt_local_blend_1", "star > heart"),
        (["13", 0], ["12", 0]),
    ),
    Template(
        "Steer 17 - Edit by words with a LoRA (Prompt-to-Prompt)",
        "lora_prompt_to_prompt",
        "As *Steer 02*, in the style of a LoRA.",
        "the checkpoint and a LoRA made for it.",
        "in *Prompt Edit*, the prompt with the words that the LoRA wants, and its change.",
        ("*strength_model*: how much of the LoRA.", *P2P),
        "SteerPromptEdit",
        {
            "2": {
                "source": "full body, chibi, a girl in a red dress",
                "target": "full body, chibi, a girl in a blue dress",
            },
            "4": {"cfg": 7.5},
            "7": {"steps": 30},
            "15": {"lora_name": "blindbox_v1_mix.safetensors"},
        },
        {"11": "the edit", "12": "the source", "13": "the edit", "14": "the source", "15": "the style"},
        Thumbnail("lora_prompt_to_prompt_2", "lora_prompt_to_prompt_1", "red > yellow"),
        (["12", 0], ["11", 0]),
    ),
    Template(
        "Steer 18 - Invert a photo and edit it (DDIM inversion)",
        "inversion_edit",
        "Turn a photo back into noise with a prompt that says what it shows, and draw it again with another prompt. "
        "Works "
        "on every kind of model; where it can be used, *Steer 01* keeps more of the photo.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, what it is to show.",
        (
            "*strength*: does too much change? Lower it to 0.6. Too little? Raise it to 1.",
            "*cfg* of the guider for the new prompt: higher follows it more closely and keeps less.",
        ),
        "SteerDDIMInversion",
        {
            "2": {"text": CAT},
            "4": {"image": "steer_cat.webp"},
            "9": {"text": TIGER},
            "10": {"cfg": 3.0},
        },
        {"14": "the edit"},
        Thumbnail("photo", "inversion_edit_1", "yellow > green"),
        (["4", 0], ["13", 0]),
        editions=(FLUX,),
    ),
    Template(
        "Steer 19 - Invert and edit, the photo's prompt as negative (negative-prompt inversion)",
        "negative_prompt_inversion",
        "Turn a photo back into noise, and draw it again guided away from the prompt that describes it. Without a "
        "change "
        "the photo comes back at any *cfg*; that is shown too.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, what it is to show.",
        ("*cfg* of the guider for the edit: higher changes more.", "*strength*: how far the photo may change."),
        "SteerDDIMInversion",
        {
            "2": {"text": CAT},
            "4": {"image": "steer_cat.webp"},
            "9": {"text": TIGER},
        },
        {"15": "the photo given back", "18": "the edit"},
        Thumbnail("photo", "negative_prompt_inversion_2", "yellow > green"),
        (["4", 0], ["17", 0]),
    ),
    Template(
        "Steer 20 - Invert and edit with a fitted negative (null-text)",
        "null_text",
        "Turn a photo back into noise, fit the negative prompt until the photo comes back under full guidance, and "
        "draw it "
        "again with another prompt.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, what it is to show.",
        ("*inner_steps*: more fits better, and takes longer.", "*strength*: how far the photo may change."),
        "SteerNullText",
        {
            "2": {"text": CAT},
            "4": {"image": "steer_cat.webp"},
            "9": {"text": TIGER},
        },
        {"15": "the photo given back", "18": "the edit"},
        Thumbnail("photo", "null_text_2", "yellow > green"),
        (["4", 0], ["17", 0]),
    ),
    Template(
        "Steer 21 - Save an inversion (DDIM inversion)",
        "inversion_file_save",
        "Invert a photo once and keep the result in a file, for many edits later.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows.",
        (REFINE, "*strength*: how far the edits may go later; 1 is all the way to noise."),
        "SteerSaveInversion",
        {"2": {"text": CAT}, "4": {"image": "steer_cat.webp"}},
        {"13": "the photo given back"},
        Thumbnail("photo", "inversion_file_save_1", "to a file"),
        (["4", 0], ["12", 0]),
    ),
    Template(
        "Steer 22 - Edit from a saved inversion (DDIM inversion)",
        "inversion_file_use",
        "Edit a photo from its saved inversion, without inverting it again.",
        "run *Steer 21* first, press *R*, then choose its file in *Load Inversion*. Until then that node is red.",
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, what it is to show.",
        ("*cfg*: higher changes more.", "*eta* of *DDIM Sampler*: stays 0, or the photo is lost."),
        "SteerLoadInversion",
        {"2": {"text": CAT}, "3": {"text": TIGER}},
        {"9": "the edit"},
        Thumbnail("photo", "inversion_file_use_1", "yellow > green"),
    ),
    Template(
        "Steer 23 - Inpaint with any sampler (Blended Diffusion)",
        "blended_diffusion",
        "Fill a hole in a picture with any sampler of ComfyUI's. Quicker than *Steer 32*, and it fits less well to "
        "what is around it.",
        HOLE,
        "in *Positive prompt*, what the picture is to show.",
        (CFG, "*dilation*: does the seam show? Raise it to 1 or 2."),
        "SteerBlendedSampler",
        {"2": {"text": STRAWBERRIES}, "4": {"cfg": 7.5}, "5": {"image": "steer_coffee_hole.webp"}},
        {"14": "the filled picture"},
        Thumbnail("inpaint", "blended_diffusion_1", "fill the hole"),
        (["5", 0], ["13", 0]),
    ),
    Template(
        "Steer 24 - Inpaint along an outline (Blended Diffusion, ControlNet)",
        "controlnet_blended",
        "Redraw the lower half of a photo, in the form that an outline says.",
        "the photo, and the outline, white on black; the checkpoint and its ControlNet.",
        "in *Positive prompt*, what the picture is to show.",
        ("*strength* of *Apply ControlNet*: how closely the outline is followed.", CFG),
        "SteerBlendedSampler",
        {
            "2": {"text": "a red apple beside a cup of coffee on a wooden table"},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_coffee.webp"},
            "18": {"control_net_name": "control_v11p_sd15_scribble_fp16.safetensors"},
            "19": {"image": "steer_scribble.png"},
        },
        {"5": "the photo", "14": "the edit", "18": "scribbles", "19": "the outline"},
        Thumbnail("photo", "controlnet_blended_1", "star > cross"),
        (["5", 0], ["13", 0]),
    ),
    Template(
        "Steer 25 - Outpaint with an inpainting model (concatenation)",
        "concatenation",
        "Add to a picture with a checkpoint that was trained for it; it gets the picture and the mask beside the "
        "noise.",
        "your picture, and an inpainting checkpoint.",
        "in *Positive prompt*, what the whole picture is to show; in *Pad Image for Outpainting*, how many pixels each "
        "side gets.",
        (CFG, "*steps*: 20 to 50."),
        "SteerCFGGuider",
        {
            "1": {"ckpt_name": "512-inpainting-ema.safetensors"},
            "2": {"text": "a rocket on its launch pad at dusk"},
            "4": {"image": "steer_rocket.webp"},
            "7": {"cfg": 7.5},
        },
        {"13": "the wider picture", "4": "picture to extend", "5": "to the right"},
        Thumbnail("outpaint", "concatenation_1", "wider"),
        (["5", 0], ["12", 0]),
    ),
    Template(
        "Steer 26 - Edit in a photo's form (T2I-Adapter)",
        "t2i_adapter_inversion",
        "Edit a photo with a T2I-Adapter that holds its form while the words change; beside it the same without.",
        "the photo, and its depth, near is white; the checkpoint and the adapter.",
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, what it is to show.",
        ("*strength* of *Apply ControlNet*: how firmly the form is held.", CFG),
        "SteerDDIMInversion",
        {
            "2": {"text": COFFEE},
            "4": {"image": "steer_coffee.webp"},
            "9": {"text": "a blue cup of tea on a white table"},
            "10": {"control_net_name": "t2iadapter_depth_sd14v1.pth"},
            "11": {"image": "steer_depth.png"},
        },
        {
            "10": "T2I-Adapter for depth",
            "11": "the photo's depth",
            "12": "told by the depth",
            "20": "in the photo's form",
            "21": "without the adapter",
        },
        Thumbnail("photo", "t2i_adapter_inversion_1", "red > blue"),
        (["4", 0], ["18", 0]),
    ),
    Template(
        "Steer 27 - Follow an example picture with CLIP guidance",
        "clip_guidance_image",
        "Draw a picture and pull it towards what an example shows, with CLIP; what it shows, not its pixels.",
        "the example in *Load Image*; the checkpoint and CLIP's half for pictures.",
        "nothing; a prompt in *Empty prompt* is followed too, with *cfg* above 1.",
        (
            "*scale*: how hard CLIP pulls. Raise it until it shows, lower it when the picture breaks up.",
            "*cutouts*: more is steadier and slower.",
        ),
        "SteerCLIPImageLoss",
        {
            "5": CLIP_TOWERS["vision"],
            "6": {"image": "steer_cat.webp"},
            "7": {"cutouts": 8, "smallest_cutout": 0.5},
            "8": {"scale": 300.0},
            "9": {"batch_size": 1},
        },
        {"15": "with CLIP guidance", "18": "without"},
        Thumbnail("clip_guidance_image_3", "clip_guidance_image_1", "like the example"),
        (["17", 0], ["14", 0]),
    ),
    Template(
        "Steer 28 - Follow a text inside a mask (CLIP guidance)",
        "clip_guidance_mask",
        "Redraw a part of a picture, pulled towards a text with CLIP in that part only.",
        "your picture in *Load Image*; the checkpoint and the two halves of CLIP.",
        "in *CLIP Text Loss*, what the part is to show; the part is the right half, from the two *Solid Mask*.",
        (
            "*scale*: how hard CLIP pulls. Raise it until it shows, lower it when the picture breaks up.",
            "*cutouts*: more is steadier and slower.",
        ),
        "SteerGradientGuider",
        {
            "5": CLIP_TOWERS["text"],
            "6": CLIP_TOWERS["vision"],
            "7": {"text": "a photo of a big full moon", "cutouts": 8, "smallest_cutout": 0.5},
            "8": {"scale": 300.0},
            "22": {"image": "steer_rocket.webp"},
            "24": {"amount": 1},
        },
        {"16": "with CLIP guidance", "19": "without"},
        Thumbnail("clip_guidance_mask_3", "clip_guidance_mask_1", "+ a red heart"),
        (["18", 0], ["15", 0]),
    ),
    Template(
        "Steer 29 - Follow a label (classifier guidance)",
        "classifier",
        "Pull a picture towards a label of a classifier while it is drawn. The classifier has to be trained on the "
        "noisy "
        "latents of the checkpoint; nobody offers one for the usual checkpoints, so this template runs on the toy of "
        "this "
        "package's repository, which has one (`lab/models`).",
        "the toy checkpoint and its classifier, or your own.",
        "in *Classifier Loss*, one of the classifier's labels.",
        (
            "*scale*: how hard the label pulls.",
            "*max_change*: holds back steps that would change too much.",
        ),
        "SteerClassifierLoader",
        {},
        {"15": "with the label", "18": "without"},
        Thumbnail("classifier_3", "classifier_1", "+ green star"),
        (["17", 0], ["14", 0]),
        TOY,
    ),
    Template(
        "Steer 30 - Follow two losses at once (classifier and CLIP guidance)",
        "gradient_guidance",
        "Losses add up: one *Gradient Guider* behind another. As *Steer 29* this needs a classifier that nobody "
        "offers for "
        "the usual checkpoints, so it runs on the toy of this package's repository (`lab/models`).",
        "the toy checkpoint, its classifier and its CLIP, or your own.",
        "in *Classifier Loss* a label, in *CLIP Text Loss* a text.",
        (
            "*scale* of each guider: how hard its loss pulls.",
            "*max_change*: holds back steps that would change too much.",
        ),
        "SteerGradientGuider",
        {},
        {"15": "with both losses", "18": "without"},
        Thumbnail("gradient_guidance_3", "gradient_guidance_1", "+ red heart"),
        (["17", 0], ["14", 0]),
        TOY,
    ),
    Template(
        "Steer 31 - Keep the background by fitting the decoder",
        "reconstruct_decoder",
        "Inpaint, then get the lost detail of the background back by fitting the VAE's decoder to the photo, and "
        "stitch "
        "what is left.",
        PHOTO,
        "in *Positive prompt*, what the edited part is to show; the mask is the rectangle of the two *Solid Mask*.",
        (
            "*steps* of *Reconstruct Background*: more comes closer to the photo, and takes longer.",
            "*learning_rate*: does it not get closer? Raise it a little. Does it break up? Lower it.",
        ),
        "SteerReconstructDecoder",
        {
            "2": {"text": STRAWBERRIES},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_coffee.webp"},
            "8": {"width": 344, "height": 328},
            "9": {"x": 88, "y": 0},
        },
        {"18": "as it decodes", "19": "fitted and stitched"},
        Thumbnail("photo", "reconstruct_decoder_2", "star > square"),
        (["5", 0], ["17", 0]),
    ),
    Template(
        "Steer 32 - Inpaint close to what is around it (Langevin)",
        "langevin",
        "Fill a hole in a picture so that what is cut by its edge goes on inside: half a cup becomes a whole one.",
        HOLE,
        "in *Positive prompt*, what the whole picture is to show, not only the hole.",
        (
            "*inner*: 3 is quicker, 9 fits better. The time grows with it.",
            CFG,
        ),
        "SteerLangevinSampler",
        {"2": {"text": STRAWBERRIES}, "4": {"cfg": 7.5}, "5": {"image": "steer_coffee_hole.webp"}},
        {"13": "the filled picture"},
        Thumbnail("inpaint", "langevin_1", "fill the hole"),
        (["5", 0], ["12", 0]),
        editions=(SDXL, FLUX),
    ),
    Template(
        "Steer 33 - Edit a photo by words on any model (Direct Edit)",
        "direct_edit",
        "Change a word of what a photo shows without turning it back into noise first: the cat becomes a tiger. Works "
        "on every model that draws from text; on SD1.5 and SDXL *Steer 35* keeps more of the photo.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, the same sentence with your change.",
        (
            "*strength*: does too much change? Lower it to 0.5. Too little? Raise it to 0.8.",
            "*target_cfg*: higher follows the new prompt and keeps less. SD3: 13.5, with *source_cfg* 3.5.",
        ),
        "SteerEditGuider",
        {"2": {"text": CAT}, "3": {"text": TIGER}, "5": {"image": "steer_cat.webp"}, "9": {"steps": 25}},
        {"13": "the edit"},
        Thumbnail("photo", "direct_edit_1", "yellow > green"),
        (["5", 0], ["12", 0]),
        editions=(SDXL, QWEN),
    ),
    Template(
        "Steer 33 - Edit a photo by words on any model (Direct Edit), Flux",
        "direct_edit",
        "Change a word of what a photo shows without turning it back into noise first: the cat becomes a tiger. The "
        "numbers are the published ones for Flux.",
        PHOTO,
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, the same sentence with your change. Each "
        "is there twice, for Flux's two text encoders.",
        (
            "*strength*: does too much change? Lower it to 0.7. Too little? Raise it to 0.9.",
            "*guidance* of *New prompt*: higher follows it more closely, 3.5 to 7.",
        ),
        "SteerEditGuider",
        {
            "2": {"clip": ["1", 1], "clip_l": CAT, "t5xxl": CAT, "guidance": 1.5},
            "3": {"clip": ["1", 1], "clip_l": TIGER, "t5xxl": TIGER, "guidance": 5.5},
            "5": {"image": "steer_cat.webp"},
            "7": {"target_cfg": 1.0},
            "9": {"steps": 24, "strength": 0.86},
        },
        {"13": "the edit"},
        Thumbnail("photo", "direct_edit_1", "yellow > green"),
        (["5", 0], ["12", 0]),
        FLUX,
        classes={"2": "CLIPTextEncodeFlux", "3": "CLIPTextEncodeFlux"},
    ),
    Template(
        "Steer 34 - Edit by words inside a mask (Direct Edit)",
        "direct_edit_mask",
        "Change by words what is inside a mask, starting from what is there. Outside it the photo stays as it is, "
        "to the pixel.",
        "your picture in *Load Image*, then right-click it, *Open in MaskEditor*, and paint over what may change. The "
        "example has a mask already.",
        "in *Prompt of the picture*, what the photo shows; in *New prompt*, the same sentence with your change.",
        (
            "*strength*: does too much change? Lower it to 0.6. Too little? Raise it to 1.",
            "*target_cfg*: higher follows the new prompt more closely and keeps less.",
        ),
        "SteerDirectEditSampler",
        {
            "2": {"text": COFFEE},
            "3": {"text": STRAWBERRIES},
            "5": {"image": "steer_coffee_hole.webp"},
            "9": {"steps": 25},
        },
        {"15": "the edit"},
        Thumbnail("inpaint", "direct_edit_mask_1", "circle > star"),
        (["5", 0], ["14", 0]),
    ),
    Template(
        "Steer 35 - Edit a photo by words without inversion (Direct Edit, Prompt-to-Prompt)",
        "direct_edit_prompt_to_prompt",
        "As *Steer 01*, without turning the photo back into noise, and in less time: at every step the photo is noised "
        "afresh and both prompts look at it side by side.",
        PHOTO,
        "in *Prompt Edit*, `source` says what the photo shows, `target` is the same sentence with your change.",
        (*P2P, "*strength*: does too much change? Lower it to 0.66. Too little? Raise it to 0.9."),
        "SteerDirectEditSampler",
        {"2": {"source": CAT, "target": TIGER}, "4": {"image": "steer_cat.webp"}, "8": {"steps": 20}},
        {"13": "the edit", "12": "the edit"},
        Thumbnail("photo", "direct_edit_prompt_to_prompt_1", "red > blue"),
        (["4", 0], ["12", 0]),
    ),
    Template(
        "Steer 36 - See where each word is, on any model (attention heatmap)",
        "attention_heatmap",
        "Draw a picture and see where in it each word of its prompt is.",
        "only the model; the picture is drawn from its prompt.",
        "in *CLIP Text Encode*, the prompt; in *Attention Heatmap*, the same prompt and the words to look at.",
        (
            "*words*: separated by commas, words next to each other together (`red car`).",
            "*noise_seed*: another picture.",
        ),
        "SteerCaptureAttention",
        {
            "2": {"text": "a red car next to a green tree"},
            "4": {"cfg": 7.5},
            "11": {"text": "a red car next to a green tree", "words": "red car, green tree"},
        },
        {"12": "where each word is"},
        Thumbnail("", "attention_heatmap_1", "red circle, blue star"),
        editions=(FLUX, ZIMAGE, QWEN, WAN),
    ),
    Template(
        "Steer 37 - Colourise a gray picture (Measurement Loss)",
        "measurement",
        "Give colours to a gray picture: at each step what is drawn is brought to the gray values of yours. "
        "Of a coloured one only the gray is read.",
        PHOTO,
        "in *Positive prompt*, what it shows, with the colours that you want.",
        (
            "*noise*: does it not agree with the gray? Lower it to 0.03. Is it grainy? Raise it to 0.1.",
            "*through_model*: is there too little memory? Turn it off, and set *max_change* to 3.",
            "*noise_seed*: other colours.",
        ),
        "SteerMeasurementLoss",
        {"2": {"text": COFFEE}, "4": {"cfg": 5.0}, "5": {"image": "steer_coffee_gray.webp"}},
        {"15": "the picture in colour", "16": "the picture that was read"},
        Thumbnail("measurement_2", "measurement_1", "gray > colours"),
        (["5", 0], ["14", 0]),
    ),
    Template(
        "Steer 38 - Draw a small picture large (Measurement Loss)",
        "measurement_small",
        "Draw a picture of 512 pixels that, made small, is the one you have: the prompt says what the details are. It "
        "does not restore what was lost; for that there are upscale models.",
        "your picture in *Load Image*. *Upscale Image* makes the example small first; your own may be small already.",
        "in *Positive prompt*, what it shows, with its details.",
        (
            "*noise*: does it not agree with the small one? Lower it to 0.03. Is it grainy? Raise it to 0.1.",
            ANEW,
        ),
        "SteerMeasurementLoss",
        {"2": {"text": CAT}, "4": {"cfg": 5.0}, "5": {"image": "steer_cat.webp"}},
        {"16": "the large picture", "17": "the small one", "6": "made small"},
        Thumbnail("measurement_small_2", "measurement_small_1", "small > large"),
        (["6", 0], ["15", 0]),
    ),
    Template(
        "Steer 39 - Draw what lies round a part (Measurement Loss)",
        "measurement_uncrop",
        "Draw a whole picture of which a part is the one that you have: what is round it is drawn from the prompt. To "
        "keep the part to the pixel take *Steer 04*.",
        "your picture in *Load Image*; *Crop Image* takes the part of it.",
        "in *Positive prompt*, what the whole picture shows; in *Crop Operator*, where in it the part lies.",
        (
            "*noise*: does the part change? Lower it to 0.03.",
            "*noise_seed*: other surroundings.",
        ),
        "SteerCropOperator",
        {"2": {"text": "a rocket on its launch pad at dusk"}, "4": {"cfg": 5.0}, "5": {"image": "steer_rocket.webp"}},
        {"16": "the whole picture", "17": "the part", "6": "the part"},
        Thumbnail("measurement_uncrop_2", "measurement_uncrop_1", "what is round it"),
        (["6", 0], ["15", 0]),
    ),
    Template(
        "Steer 40 - Clean a JPEG (Measurement Loss)",
        "measurement_jpeg",
        "Draw a picture that, saved as a JPEG, gives the file you have: blocks and rings go, and what the file does "
        "not say comes from the prompt.",
        "your JPEG in *Load Image*, of 512 x 512 pixels and not scaled since it was saved.",
        "in *Positive prompt*, what it shows; in *JPEG Operator*, the quality it was saved with (rather too low).",
        (
            "*noise*: are blocks left? Raise it to 0.1. Does it stray from the file? Lower it to 0.03.",
            ANEW,
        ),
        "SteerJPEGOperator",
        {"2": {"text": CAT}, "4": {"cfg": 5.0}, "5": {"image": "steer_cat_jpeg.jpg"}},
        {"15": "the picture, cleaned", "16": "the JPEG"},
        Thumbnail("measurement_jpeg_2", "measurement_jpeg_1", "JPEG > clean"),
        (["5", 0], ["14", 0]),
        scaled=False,
    ),
    Template(
        "Steer 41 - Sharpen a blurred picture (Measurement Loss)",
        "measurement_blur",
        "Draw a picture that, blurred, is the one you have: the prompt says what the details are. It does not restore "
        "what was lost.",
        f"{PHOTO} *Blur Image* blurs the example first; leave it out for a blurred one.",
        "in *Positive prompt*, what it shows; in *Blur Operator*, how far it is blurred (rather too little).",
        (
            "*std*: are there rings round edges? Lower it. Is it still soft? Raise it.",
            "*noise*: is it grainy? Raise it to 0.1.",
            ANEW,
        ),
        "SteerBlurOperator",
        {
            "2": {"text": CAT},
            "4": {"cfg": 5.0},
            "5": {"image": "steer_cat.webp"},
            "6": {"std": 4.0},
            "17": {"blur_radius": 16, "sigma": 4.0},
        },
        {"15": "the picture, sharp", "16": "the blurred one", "17": "blurred"},
        Thumbnail("measurement_blur_2", "measurement_blur_1", "blurred > sharp"),
        (["17", 0], ["14", 0]),
    ),
    Template(
        "Steer 42 - Draw in the colours of a picture (Palette Loss)",
        "palette",
        "Draw a picture from a prompt, in the colours of another one, wherever these are in it.",
        "a picture in the colours that you want, in *Load Image*.",
        "in *Positive prompt*, what to draw.",
        (
            "*scale*: are the colours others? Raise it to 30. Does it get harsh? Lower it, or *max_change* to 1.",
            "*noise_seed*: another picture.",
        ),
        "SteerPaletteLoss",
        {
            "2": {"text": "a landscape with a lake"},
            "4": {"cfg": 5.0},
            "5": {"image": "steer_strokes.webp"},
            "12": {"batch_size": 1},
        },
        {"15": "in the colours of the picture", "18": "without the loss"},
        Thumbnail("palette_4", "palette_2", "+ blue and red"),
        (["17", 0], ["14", 0]),
    ),
    Template(
        "Steer 43 - Draw in the style of a picture (Style Loss)",
        "style",
        "Draw a picture from a prompt, in the style of another one as CLIP sees its colours and textures.",
        "a picture in the style that you want, in *Load Image*; any CLIP vision tower.",
        "in *Positive prompt*, what to draw.",
        (
            "*scale*: does the style not show? Raise it to 300. Does the picture break up? Lower it.",
            "*cutouts*: more is steadier and slower.",
        ),
        "SteerStyleLoss",
        {
            "2": {"text": "a landscape with a lake"},
            "4": {"cfg": 5.0},
            "5": {"image": "steer_strokes.webp"},
            "6": CLIP_TOWERS["vision"],
            "7": {"cutouts": 8},
            "12": {"batch_size": 1},
        },
        {"15": "in the style of the picture", "18": "without the loss"},
        Thumbnail("style_3", "style_1", "+ a style"),
        (["17", 0], ["14", 0]),
    ),
    Template(
        "Steer 44 - Change a picture as two texts differ (CLIP Direction Loss)",
        "clip_direction",
        "Redraw a picture, moved in CLIP from one text to another. Where the model reads text itself, *Steer 33* edits "
        "better.",
        "your picture in *Load Image*, of 512 x 512 pixels, and the two halves of CLIP; they must belong together.",
        "in *CLIP Direction Loss*, `source_text` says what the picture shows, `target_text` what it is to show.",
        (
            "*scale*: does nothing change? Raise it. Does more change than the texts say? Lower it.",
            "*strength*: how much may be drawn anew.",
        ),
        "SteerCLIPDirectionLoss",
        {
            "2": {"text": "a photo"},
            "4": {"image": "steer_cat.webp"},
            "5": CLIP_TOWERS["text"],
            "6": CLIP_TOWERS["vision"],
            "7": {"source_text": CAT, "target_text": TIGER, "cutouts": 8},
            "8": {"scale": 300.0},
        },
        {"15": "changed as the texts differ", "18": "without the loss"},
        Thumbnail("clip_direction_2", "clip_direction_1", "+ yellow > red"),
        (["4", 0], ["14", 0]),
    ),
    Template(
        "Steer 45 - Continue a clip (Langevin), Wan",
        "clip_continuation",
        "Draw the frames that follow a clip: what moves in it moves on.",
        CLIP,
        "in *Prompt*, what the whole clip shows; in *Get Image from Batch*, which frames are given (4k + 1 of them).",
        (
            "*after* of *Pad Frames*: how many new frames.",
            "*inner*: does it not go on from the clip? Raise it to 9. The time grows with it.",
            CFG,
        ),
        "SteerPadFrames",
        {
            "2": {"text": MOVING_DOWN},
            "5": {"image": "steer_clip.webp"},
            "6": {"length": 17},
            "7": {"after": 16},
            "17": {"scale_by": 1.0},
        },
        {"18": "the longer clip", "6": "the given frames", "7": "new frames after them", "17": "as large as it is"},
        Thumbnail("clip_continuation_5", "clip_continuation_9", "+ 4 frames"),
        family=WAN,
    ),
    Template(
        "Steer 46 - Lead from one clip to another (Langevin), Wan",
        "clip_bridge",
        "Draw the frames between two clips, or between the end of a clip and its beginning, for a loop.",
        CLIP,
        "in *Prompt*, what the whole clip shows; in the two *Get Image from Batch*, what is given before and after.",
        (
            "*after* of *Pad Frames*: how many frames lie between; with the given ones before them, 4k + 1.",
            "*inner*: do the ends not meet? Raise it to 9. The time grows with it.",
            CFG,
        ),
        "SteerFrameMask",
        {
            "2": {"text": MOVING_DOWN},
            "5": {"image": "steer_clip.webp"},
            "6": {"length": 5},
            "19": {"batch_index": 17, "length": 8},
            "7": {"after": 12},
            "17": {"scale_by": 1.0},
        },
        {
            "18": "the whole clip",
            "6": "given before",
            "19": "given after",
            "7": "new frames between them",
            "17": "as large as it is",
        },
        Thumbnail("clip_bridge_1", "clip_bridge_4", "4 frames between"),
        family=WAN,
    ),
    Template(
        "Steer 47 - Teach a model a change by what CLIP sees (Fit LoRA)",
        "fit_lora",
        "Fit a LoRA that changes pictures of one kind as two texts differ, without one picture of the result: here "
        "cats become tigers. A picture that it never saw is then inverted and sampled with it.",
        "the checkpoint and the two halves of CLIP, which must belong together; the set is drawn from its prompt.",
        "in *CLIP Direction Loss*, `source_text` says what all pictures of the set show, `target_text` what they are "
        "to show.",
        (
            "*iterations*: does nothing change? Raise it, then *learning_rate*.",
            "*keep*: do the pictures fall apart? Raise it to 1, or lower *learning_rate*.",
            "*strength*: how much of a picture may change.",
        ),
        "SteerFitLoRA",
        {
            "3": {"text": CAT},
            "5": {"cfg": 7.0},
            "7": CLIP_TOWERS["text"],
            "8": CLIP_TOWERS["vision"],
            "9": {"source_text": CAT, "target_text": TIGER, "cutouts": 4},
            "11": {"steps": 6},
            "15": {"text": "a photo of a cat on a sofa"},
            "17": {"cfg": 7.0},
        },
        {"19": "a picture that it never saw", "25": "with the LoRA", "15": "another picture"},
        Thumbnail("fit_lora_1", "fit_lora_2", "red > yellow, fitted"),
        (["18", 0], ["24", 0]),
    ),
    Template(
        "Steer 48 - Train a LoRA (ComfyUI's trainer)",
        "train_lora",
        "Teach the model your pictures with ComfyUI's own trainer, which is experimental and wants a GPU. The settings "
        "are a beginning: we have tried it on a small model, not on SD1.5. ComfyUI 0.8 is too old for it; 0.33 is not.",
        "your pictures. Make a folder in ComfyUI's input folder, put 10 to 30 pictures of one size (512 x 512) into "
        "it, beside each its caption in a text file of the same name (`01.png`, `01.txt`), press *r* and choose the "
        "folder. `steer_photos` is an example with four.",
        "in *Positive prompt*, what to draw with the LoRA, in words of the captions.",
        (
            "*steps*: is nothing learned? 600. Is every picture one of yours? 100.",
            "*learning_rate*: do colours and places break? Lower it to 0.0002.",
            "*Save LoRA Weights* writes to `loras` in the output folder; moved to `models/loras`, *Load LoRA* has it.",
        ),
        "SteerCFGGuider",
        {
            "2": {"folder": "steer_photos"},
            "3": {"text": CAT},
            "5": {"batch_size": 1},
            "7": {"steps": 30},
            "10": {
                "grad_accumulation_steps": 4,
                "steps": 300,
                "learning_rate": 0.0005,
                "training_dtype": "bf16",
                "gradient_checkpointing": True,
            },
        },
        {"16": "with the LoRA", "20": "without it"},
        Thumbnail("train_lora_7", "train_lora_3", "+ a LoRA"),
        (["19", 0], ["15", 0]),
    ),
    Template(
        "Steer 49 - Draw with the depth of a picture (Depth Loss)",
        "depth",
        "Draw a picture from a prompt, in which near and far are where they are in another one, by a depth model: for "
        "models that have no depth ControlNet. We have tried it on a small model, not on SD1.5. ComfyUI 0.8 is too old "
        "for it; 0.33 is not.",
        "a picture of 512 x 512 pixels with near and far things in it, in *Load Image*. A picture, not a depth map.",
        "in *Positive prompt*, what to draw.",
        (
            "*scale*: are things elsewhere? 3000. Does the picture get harsh? 300, or *max_change* 1.",
            "*resolution*: is it slow, or out of memory? 252.",
            "*noise_seed*: another picture.",
        ),
        "SteerDepthLoss",
        {
            "2": {"text": "a marble vase on a table in a garden"},
            "4": {"cfg": 7.5},
            "5": {"image": "steer_coffee.webp"},
            "6": {"model_name": "depth_anything_3_mono_large.safetensors", "weight_dtype": "default"},
            "7": {"resolution": 504},
            "12": {"batch_size": 1},
        },
        {"15": "with the depth of the picture", "18": "without the loss"},
        Thumbnail("depth_3", "depth_1", "+ a depth"),
        (["17", 0], ["14", 0]),
        classes={"6": "LoadDA3Model"},
    ),
    Template(
        "Steer 50 - Edit a clip by words (Direct Edit), Wan",
        "clip_direct_edit",
        "Change a word of what a clip shows, without inversion; what moves goes on moving as it did.",
        CLIP,
        "in *Prompt of the clip*, what it shows; *New prompt* is the same sentence with your change.",
        (
            "*strength*: does nothing change? Raise it to 0.9. Does too much? Lower it to 0.6.",
            "*target_cfg*: how strongly the new prompt is followed.",
        ),
        "SteerDirectEditSampler",
        {
            "2": {"text": MOVING_DOWN},
            "3": {"text": MOVING_DOWN.replace("red", "blue")},
            "5": {"image": "steer_clip.webp"},
            "9": {"steps": 30},
            "13": {"scale_by": 1.0},
        },
        {"14": "the edited clip", "13": "as large as it is"},
        Thumbnail("clip", "clip_direct_edit_9", "circle > star, 9 frames"),
        family=WAN,
    ),
    Template(
        "Steer 51 - Find and replace in a clip (DiffEdit), Wan",
        "clip_diffedit",
        "Change a word of what a clip shows: the two prompts tell where, and all else comes back as it was.",
        CLIP,
        "in *Prompt of the clip*, what it shows; *New prompt* is the same sentence with your change.",
        (
            "*threshold* of *DiffEdit Mask*: is too little in the mask? Lower it. Too much? Raise it.",
            "*strength*: does nothing change inside the mask? Raise it to 1.",
            "*cfg* of the guider for the new prompt: how strongly it is followed.",
        ),
        "SteerDiffEditMask",
        {
            "2": {"text": MOVING_DOWN},
            "3": {"text": MOVING_DOWN.replace("red", "blue")},
            "5": {"image": "steer_clip.webp"},
            "8": {"steps": 30},
            "9": {"cfg": 1.0},
            "17": {"scale_by": 1.0},
            "19": {"scale_by": 1.0},
        },
        {
            "18": "the edited clip",
            "20": "where the prompts differ",
            "17": "as large as it is",
            "19": "as large as it is",
        },
        Thumbnail("clip", "clip_diffedit_9", "circle > star, 9 frames"),
        family=WAN,
    ),
    Template(
        "Steer 52 - Repair some frames of a clip (Langevin), Wan",
        "clip_inpainting",
        "Draw a part of some frames anew, close to the frames before and after them and to what is around it.",
        "your clip in the first *Load Image*, as an animated picture, and in the second one of its frames, with the "
        "part painted in the mask editor.",
        "in *Prompt*, what the whole clip shows; in *Frame Mask*, `first` and `last` of the frames to be drawn anew.",
        (
            "*inner*: does it not go on from the clip? Raise it to 9. The time grows with it.",
            "*feather* of *Stitch*: how soft the edge of the new part is.",
            CFG,
        ),
        "SteerFrameMask",
        {
            "2": {"text": MOVING_DOWN},
            "5": {"image": "steer_clip.webp"},
            "6": {"image": "steer_clip_hole.webp"},
            "8": {"first": 5, "last": 16},
            "16": {"scale_by": 1.0},
        },
        {"17": "the repaired clip", "6": "one frame, with the part", "8": "in these frames", "16": "as large as it is"},
        Thumbnail("clip_hole", "clip_inpainting_2", "4 frames repaired"),
        family=WAN,
    ),
    Template(
        "Steer 53 - Make a clip wider (Langevin), Wan",
        "clip_outpainting",
        "Draw what lies beside a clip, in every frame of it.",
        CLIP,
        "in *Prompt*, what the whole clip shows, the new part too.",
        (
            "*left*, *top*, *right*, *bottom* of *Pad Image*: how much is added, in steps of 16.",
            "*inner*: does it not go on from the clip? Raise it to 9. The time grows with it.",
            CFG,
        ),
        "SteerLangevinSampler",
        {
            "2": {"text": MOVING_DOWN},
            "5": {"image": "steer_clip.webp"},
            "6": {"right": 128},
            "16": {"scale_by": 1.0},
        },
        {"17": "the wider clip", "6": "new columns at the right", "16": "as large as it is"},
        Thumbnail("clip_left", "clip_outpainting_9", "+ 24 columns"),
        family=WAN,
    ),
    Template(
        "Steer 54 - Sharper form without CFG (PAG)",
        "perturbed_attention",
        "ComfyUI's perturbed-attention guidance under CFG Guider: guides away from what the model would draw with its "
        "self-attention switched off in the middle, with no negative prompt and at *cfg* 1 too. One more model call a "
        "step.",
        "only the checkpoint.",
        "in *Positive prompt*, what to show. The negative prompt does nothing at *cfg* 1.",
        (
            "*scale*: how much of it. Too hard or too simple? Lower it to 1.5.",
            "*cfg*, in both guiders: above 1 it is guidance by the prompt besides.",
        ),
        "SteerCFGGuider",
        {"2": {"text": "a photo of an astronaut riding a horse"}, "5": {"batch_size": 1}, "7": {"steps": 25}},
        {"13": "without", "16": "with PAG", "10": "on the patched model", "4": "plain"},
        Thumbnail("perturbed_attention_1", "perturbed_attention_5", "+ PAG"),
        (["12", 0], ["15", 0]),
    ),
    Template(
        "Steer 55 - High guidance without burnt colours (RescaleCFG)",
        "rescale_cfg",
        "ComfyUI's rescaled guidance under CFG Guider: a high *cfg* follows the prompt more closely, and the spread of "
        "each estimate is set back to what it would be without guidance.",
        "only the checkpoint.",
        "in *Positive prompt*, what to show; in *Negative prompt*, what to avoid.",
        (
            "*multiplier*: how much is set back. Gray and flat? Lower it to 0.4. Still burnt? Raise it to 1.",
            "*cfg*, in both guiders.",
        ),
        "SteerCFGGuider",
        {
            "2": {"text": "a photo of an astronaut riding a horse"},
            "3": {"text": "blurry, low quality"},
            "5": {"batch_size": 1},
            "7": {"steps": 25},
        },
        {"13": "as it is", "16": "rescaled", "10": "on the patched model", "4": "plain"},
        Thumbnail("rescale_cfg_2", "rescale_cfg_6", "rescaled"),
        (["12", 0], ["15", 0]),
    ),
    Template(
        "Steer 56 - Draw small, then redraw large (two stages)",
        "two_stage",
        "A picture of twice the model's size in two stages: drawn at the size that the model knows, enlarged, and "
        "redrawn from a low strength, so that it stays one picture. Drawn large at once, things come several times.",
        "only the checkpoint.",
        "in *Positive prompt*, what to show; in *Negative prompt*, what to avoid.",
        (
            "*strength*: does it stay soft? Raise it to 0.4. Do things come twice? Lower it.",
            "*width*, *height* of *Upscale Image*: the size of the large picture.",
        ),
        "SteerSDEditSigmas",
        {
            "2": {"text": "a photo of an astronaut riding a horse"},
            "3": {"text": "blurry, low quality"},
            "4": {"cfg": 7.5},
            "5": {"batch_size": 1},
            "7": {"steps": 25},
            "14": {"steps": 15, "strength": 0.3},
            "19": {"batch_size": 1},
        },
        {
            "11": "small",
            "18": "redrawn large",
            "22": "large at once",
            "14": "how much is redrawn",
            "12": "to twice the size",
        },
        Thumbnail("two_stage_5", "two_stage_3", "in two stages"),
        (["21", 0], ["17", 0]),
    ),
    Template(
        "Steer 57 - Move a thing along a path (Paint with Words), Wan",
        "clip_layout",
        "Say for each frame of a clip where a thing is: it follows the path that a colour map takes.",
        "a map for each frame in *Load Image*, an animated picture of plain colours with as many frames as the clip. "
        "Of a video take *Load Video* and *Get Video Components* in its place.",
        "in *Regions from Segmentation*, a line for each colour with words of the prompt; in *Paint with Words*, the "
        "prompt, which has to say the motion too.",
        (
            "*weight*: does the thing not follow? Raise it to 0.4. Its shape is spoilt? Lower it to 0.1.",
            "*length*: the frames of the clip, 4k + 1 of them.",
            CFG,
        ),
        "SteerPaintWithWords",
        {
            "2": {"image": "steer_clip_map.png"},
            "3": {"legend": "#e6194b: red balloon"},
            "4": {"text": "a red balloon floats up to the right over a green meadow"},
            "7": {"length": 33},
            "13": {"scale_by": 1.0},
        },
        {"14": "the clip", "2": "a map for each frame", "13": "as large as it is"},
        Thumbnail("clip_map", "clip_layout_9", "along the map's path"),
        family=WAN,
    ),
    Template(
        "Steer 58 - Teach a word for your subject (DreamBooth, ComfyUI's trainer)",
        "dreambooth",
        "Teach the model a word for one thing, your cat or your cup, with ComfyUI's own trainer, which is experimental "
        "and wants a GPU. What the model draws of other such things, it learns to go on drawing. The settings are a "
        "beginning: we have tried it on a small model, not on SD1.5. ComfyUI 0.8 is too old for it; 0.33 is not.",
        "4 to 10 pictures of the thing. Make a folder in ComfyUI's input folder, put them there in one size (512 x "
        "512), beside each its caption in a text file of the same name (`01.png`, `01.txt`: *a photo of a cat*), press "
        "*r* and choose the folder. `steer_photos` is an example with one cat among other things.",
        "in *Replace Text*, what your captions call the thing, and the same with the word that it is to have: *sks* "
        "means nothing to the model. In *Prompt with the word*, what to draw.",
        (
            "*steps*: is the thing not learned? 800. Is every cat yours? 200.",
            "*learning_rate*: do colours and places break? Lower it to 0.0002.",
            "*Save LoRA Weights* writes to `loras` in the output folder; moved to `models/loras`, *Load LoRA* has it.",
        ),
        "SteerCFGGuider",
        {
            "2": {"folder": "steer_photos"},
            "3": {"find": CAT, "replace": "a photo of a sks cat"},
            "8": {"batch_size": 1},
            "11": {"steps": 30},
            "17": {
                "grad_accumulation_steps": 4,
                "steps": 400,
                "learning_rate": 0.0005,
                "training_dtype": "bf16",
                "gradient_checkpointing": True,
            },
            "20": {"text": "a photo of a sks cat in a garden"},
            "25": {"text": "a photo of a cat in a garden"},
        },
        {"24": "with the word", "29": "without it"},
        Thumbnail("dreambooth_7", "dreambooth_3", "red heart, left heart"),
        (["28", 0], ["23", 0]),
    ),
)
WITHOUT_TEMPLATE = {
    "hypernetwork_prompt_to_prompt": "of hypernetworks for SD1.5 no file was found that the editor could offer",
    "transformer_heatmap": "*Steer 36* for Flux, Z-Image and Qwen-Image, on the joint model",
    "transformer_layout": "*Steer 07* for Flux, Z-Image and Qwen-Image, on the joint model",
}
"""Workflows that are for demo and tests alone, and why."""
