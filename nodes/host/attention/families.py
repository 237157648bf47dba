"""The families of models whose attention is known: where their layers are, and what the columns of a layer are.

Data alone. Text, picture and the rest follow each other in the columns of a joint layer (one softmax over all), in the
order in which a record has them; a cross layer's columns are the text. What is not here is read from the network (its
patches, its registers) or from the call (how long the text is, and what else comes with it).
"""

import re
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Family:
    """Models whose networks have the same layers."""

    name: str
    network: str
    """The classes of the host's networks."""
    layers: str
    """The names of the modules within which a layer's call comes: of blocks, or of the cross-attention. A pattern."""
    columns: str = ""
    """Of a joint layer, in order; empty for a family whose layers attend to the text alone."""
    patch: tuple[int, ...] = ()
    """Of the latent's last axes; empty where the network's `patch_size` says it."""
    before: bool = False
    """Whether a text shorter than what the network gets was padded before it, not after."""
    cropped: bool = False
    """Whether the network leaves out a text's padding."""
    besides: str = ""
    """A further call within a layer that is left alone: the picture's `self`-attention, or that to CLIP's `vision`."""
    only_with: str = ""
    """A module that tells this family from others of the same network."""
    best: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """(number of layers, those whose maps show words best), measured by Shin et al. 2025, arXiv:2508.07519."""

    @property
    def kind(self) -> str:
        return "joint" if self.columns else "cross"

    def heated(self, names: list[str]) -> list[str]:
        """Of the layers, in their order, those that show words best; where nobody has measured, the middle ones."""
        depth = len(names)
        middle = range(depth) if depth <= FEW else range(int(0.3 * depth), ceil(0.6 * depth))
        return [names[number] for number in dict(self.best).get(depth, middle)]


FEW = 12  # layers, all of which show words best together (bench/heatmaps.md, of the joint model)
TEXT_FIRST = "text picture references"
STREAMS = r"(double|single)_blocks\.\d+"
BLOCKS = r"transformer_blocks\.\d+"
CROSS = r"(vace_)?blocks\.\d+\.cross_attn"
SD3 = "OpenAISignatureMMDITWrapper"
FLUX = ((57, (11, 12, 14, 17, 18)),)

UNETS = Family("SD1.x, SD2.x, SDXL", "UNetModel", r"(input_blocks|middle_block|output_blocks)\..*\.attn2")
TRANSFORMERS = (
    Family("SD3.5 Medium", SD3, r"joint_blocks\.\d+", "text picture", besides="self",
           only_with="joint_blocks.0.x_block.attn2", best=((24, (5, 7, 8, 9, 10)),)),
    Family("SD3, SD3.5 Large", SD3, r"joint_blocks\.\d+", "text picture",
           best=((24, (4, 5, 7, 8, 9)), (38, (16, 18, 20, 21, 24)))),
    Family("Flux.1, Kontext, Flux.2, Klein, LongCat", "Flux", STREAMS, TEXT_FIRST, before=True, best=FLUX),
    Family("Chroma, Radiance", "Chroma ChromaRadiance", STREAMS, TEXT_FIRST, best=FLUX),
    Family("Qwen-Image", "QwenImageTransformer2DModel", BLOCKS, TEXT_FIRST),
    Family("Mage-Flow", "MageFlowTransformer2DModel", BLOCKS, TEXT_FIRST),
    Family("JoyImage", "JoyImageTransformer3DModel", r"double_blocks\.\d+", "picture references text"),
    Family("Ideogram 4", "Ideogram4Transformer2DModel", r"layers\.\d+", "text picture", patch=(1, 1)),
    Family("PixelDiT, PiD", "PixDiT_T2I PidNet", r"patch_blocks\.\d+", "text picture"),
    Family("Mochi", "AsymmDiTJoint", r"blocks\.\d+", "picture text", cropped=True),
    Family("CogVideoX", "CogVideoXTransformer3DModel", r"blocks\.\d+", "text picture"),
    Family("Z-Image, Lumina 2", "NextDiT NextDiTPixelSpace", r"layers\.\d+", "text picture"),
    Family("HunyuanVideo 1.5", "HunyuanVideo", STREAMS, "vision glyphs text picture", only_with="cond_type_embedding"),
    Family("HunyuanVideo, HunyuanImage 2.1", "HunyuanVideo", STREAMS, "text glyphs references picture"),
    Family("HiDream-I1", "HiDreamImageTransformer2DModel", r"(double|single)_stream_blocks\.\d+", "picture text"),
    Family("AuraFlow", "MMDiT", r"(double|single)_layers\.\d+", "registers text picture"),
    Family("OmniGen2", "OmniGen2Transformer2DModel", r"layers\.\d+", "text references picture"),
    Family("Boogu", "BooguTransformer2DModel", r"(double|single)_stream_layers\.\d+", "text references picture",
           besides="self"),
    Family("Krea 2", "SingleStreamDiT", r"blocks\.\d+", TEXT_FIRST, patch=(2, 2)),
    Family("Wan 2.1 and 2.2 with a picture, Camera, Animate", "WanModel CameraWanModel AnimateWanModel", CROSS,
           besides="vision", only_with="blocks.0.cross_attn.k_img"),
    Family("Wan 2.1 and 2.2, VACE, Camera, HuMo", "WanModel VaceWanModel CameraWanModel HumoWanModel", CROSS),
    Family("LTX-Video", "LTXVModel", r"transformer_blocks\.\d+\.attn2", patch=(1, 1, 1)),
    Family("Cosmos", "GeneralDIT", r"blocks\.block\d+\.blocks\.1\.block\.attn", patch=(1, 2, 2)),
    Family("Cosmos-Predict2", "MiniTrainDIT", CROSS, patch=(1, 2, 2)),
    Family("Anima", "Anima", CROSS, patch=(1, 2, 2)),
    Family("Kandinsky 5", "Kandinsky5", r"visual_transformer_blocks\.\d+\.cross_attention"),
)  # fmt: skip
UNREACHED = "ComfyUI does not let others into its attention"
TALKS = "it draws with a language model, whose text and picture are not told apart"
WORDLESS = "the words of its text are not told apart on the way from the text encoder"
CROWDED = "what else it follows (poses, sound, other pictures) goes through the layers in which words are"
SOUNDS = "it makes sound, and the attention nodes are about places in pictures"
REFUSED = {
    "PixArtMS": ("PixArt", UNREACHED),
    "HunYuanDiT": ("HunyuanDiT", UNREACHED),
    "ErnieImageModel": ("Ernie-Image", UNREACHED),
    "CausalWanModel": ("Wan, causal", UNREACHED),
    "HiDreamO1Transformer": ("HiDream-O1", TALKS),
    "MiniMaxH3Model": ("MiniMax-H3", TALKS),
    "LensTransformer2DModel": ("Lens", WORDLESS),
    "LTXAVModel": ("LTX-2", WORDLESS),
    "WanModel_S2V": ("Wan S2V", CROWDED),
    "WanAnimate2Model": ("Wan Animate 2", CROWDED),
    "SCAILWanModel": ("SCAIL", CROWDED),
    "SCAIL2WanModel": ("SCAIL-2", CROWDED),
    "WanDancerModel": ("WanDancer", CROWDED),
    "StageC": ("Stable Cascade", "its words and its picture are columns of layers of several sizes"),
    "StageB": ("Stable Cascade's second stage", "it enlarges a picture, and no words are in its layers"),
    "AudioDiffusionTransformer": ("Stable Audio", SOUNDS),
    "ACEStepTransformer2DModel": ("ACE-Step", SOUNDS),
    "AceStepConditionGenerationModel": ("ACE-Step 1.5", SOUNDS),
    "MiniMaxMusic3DiT": ("MiniMax Music 3", SOUNDS),
}
"""By network: the name of the family, and why its attention cannot be edited."""
KNOWN = f"UNets (SD1.x, SD2.x, SDXL) and transformers ({'; '.join(family.name for family in TRANSFORMERS)})"


def family_of(network) -> Family | None:
    """The transformers that a network is of; None for a UNet and for what is not known."""
    kind, modules = type(network).__name__, dict(network.named_modules())
    fitting = (family for family in TRANSFORMERS if kind in family.network.split())
    return next((family for family in fitting if not family.only_with or family.only_with in modules), None)


def layers_of(network, family: Family) -> list[str]:
    """The names of the modules within which the calls of its layers come, in their order."""
    return [name for name, _ in network.named_modules() if re.fullmatch(family.layers, name)]
