"""The two towers of the CLIP pair as the host builds them, made fit to be trained, and the loss they are trained by."""

import math
from dataclasses import dataclass

import comfy.clip_model
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...world.data import BACKGROUNDS, COLORS, SHAPES
from ...world.pair_texts import TOKENS, VOCABULARY, Text, rows
from ..embedding_rows import ROWS
from ..shapes_unet.network import OPERATIONS, initialised
from . import loader

PATCHES = 5.0  # weight of the loss by which the patches learn what they show; its heads are not kept
MIDDLE, MASKS = 1, 10.0  # layer after which patches tell where the objects are, and its weight in the loss
NO_SHAPE = 0.1  # weight of the patches that show the background
CERTAINTY, COLDEST = 10.0, 30.0  # what the cosine is multiplied by, at first and at most
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Batch:
    """Pictures and texts, and what is known of them."""

    pictures: Tensor  # (n, 3, 64, 64)
    texts: list[Text]
    true: Tensor  # bool (n, texts): which text is true of which picture,
    decided: Tensor  # and where that can be said
    patches: tuple[Tensor, Tensor]  # shape and colour labels (n, patches)
    masks: Tensor  # (n, patches, pixels of a patch): the objects' coverage


class Towers(nn.Module):
    """Both towers as the host builds them; the text tower holds only the words and places in use."""

    def __init__(self):
        super().__init__()
        config = loader.TEXT_CONFIG | {"max_position_embeddings": TOKENS}
        self.text = initialised(comfy.clip_model.CLIPTextModel(config, None, None, OPERATIONS))
        self.text.set_input_embeddings(OPERATIONS.Embedding(len(VOCABULARY), loader.JOINT))
        nn.init.normal_(self.text.get_input_embeddings().weight, std=0.3)
        nn.init.normal_(self.text.text_model.embeddings.position_embedding.weight, std=0.1)
        vision = comfy.clip_model.CLIPVisionModelProjection(loader.VISION_CONFIG, None, None, OPERATIONS)
        self.vision = initialised(vision)
        _start_local(self.vision.vision_model)
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(CERTAINTY))), nn.Parameter(torch.tensor(-CERTAINTY))
        width = loader.VISION_CONFIG["hidden_size"]
        self.heads = nn.ModuleList(
            [nn.Linear(width, 1 + len(SHAPES)), nn.Linear(width, len(COLORS) + len(BACKGROUNDS))]
        )
        self.mask_head = nn.Linear(width, loader.VISION_CONFIG["patch_size"] ** 2)
        self.requires_grad_(True)

    def read(self, texts: list[Text]) -> Tensor:
        """Unit embeddings (m, joint) of texts, as the host pools them: at the first end token."""
        ids, lengths = zip(*map(rows, texts), strict=True)
        embeddings = self.text.get_input_embeddings()(torch.tensor(ids))
        return F.normalize(self.text(embeds=embeddings, num_tokens=list(lengths))[2].float(), dim=-1)

    def see(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings (n, joint) of pictures (n, 3, 64, 64) in 0..1, and their patches (n, patches, width), last
        and half way through the tower.
        """
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        last, middle, embedding, _ = self.vision(pixel_values=(pictures - mean) / std, intermediate_output=MIDDLE)
        return F.normalize(embedding.float(), dim=-1), last[:, 1:], middle[:, 1:]

    def loss(self, pictures: Tensor, batch: Batch) -> Tensor:
        """The sigmoid loss per picture, and that of the patches' labels."""
        with torch.autocast("cpu", torch.bfloat16):
            embedding, tokens, early = self.see(pictures)
            guess = self.mask_head(early).float()
            patches = [head(tokens).float().transpose(1, 2) for head in self.heads]
            text = self.read(batch.texts)
        logits = self.scale.exp().clamp(max=COLDEST) * (embedding @ text.T).float() + self.bias
        weight, true = batch.decided.float(), batch.true.float()
        loss = F.binary_cross_entropy_with_logits(logits, true, weight, reduction="sum") / len(pictures)
        shape, color = (
            F.cross_entropy(logit, label, torch.tensor(rare + [1.0] * (logit.shape[1] - len(rare))))
            for logit, label, rare in zip(patches, batch.patches, ([NO_SHAPE], []), strict=True)
        )
        place = F.binary_cross_entropy_with_logits(guess, batch.masks.clamp(0, 1))
        return loss + PATCHES * (shape + color) + MASKS * place


def files(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The text and the vision tower with the host's keys and sizes, fp16, the embedding table as its rows in use."""
    parts = {}
    for tower in ("text", "vision"):
        parts[tower] = {key[len(tower) + 1 :]: value for key, value in weights.items() if key.startswith(f"{tower}.")}
    config, text = loader.TEXT_CONFIG, parts["text"]
    places = text[loader.TEXT_MARK[0]]
    text[loader.TEXT_MARK[0]] = F.pad(places, (0, 0, 0, config["max_position_embeddings"] - len(places)))
    text, vision = ({key: value.half().contiguous() for key, value in part.items()} for part in parts.values())
    return {**text, f"text_model.embeddings.{ROWS}": torch.tensor(VOCABULARY)}, vision


@torch.no_grad()
def _start_local(vision: nn.Module) -> None:
    """Places as sines and cosines and equal queries and keys, so that patches first look around themselves.

    After Trockman and Kolter 2023 (arXiv:2305.09828).
    """
    side = loader.VISION_CONFIG["image_size"] // loader.VISION_CONFIG["patch_size"]
    width = loader.VISION_CONFIG["hidden_size"]
    angles = torch.arange(side)[:, None] / 100 ** torch.linspace(0, 1, width // 4)
    place = torch.cat((angles.sin(), angles.cos()), 1)  # (side, width / 2)
    down, across = place[:, None].expand(side, side, -1), place[None].expand(side, side, -1)
    patches = torch.cat((down, across), -1).flatten(0, 1)
    vision.embeddings.position_embedding.weight.copy_(F.pad(patches, (0, 0, 1, 0)))  # the class token has none
    nn.init.normal_(vision.embeddings.class_embedding, std=0.5)
    for layer in vision.encoder.layers:
        nn.init.normal_(layer.self_attn.q_proj.weight, std=width**-0.5)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
