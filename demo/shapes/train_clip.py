"""Trains the CLIP pair: text and vision tower in one space, for guidance by the gradient of their distance.

Every picture of a batch is compared with every text by the sigmoid loss (SigLIP, Zhai et al. 2023, arXiv:2303.15343),
with the scenes' truth as targets. Half of the data are the shapes model's own estimates from noise, and each batch is
used REPLAYS times with a perturbation that raises its loss (free adversarial training, Shafahi et al. 2019,
arXiv:1904.12843), which makes the gradient by the picture a direction towards shapes instead of noise.
"""

import argparse
import math
import random
import time
from pathlib import Path

import comfy.clip_model
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..shapes_loader import clip_pair
from . import CLIP_TEXT, CLIP_VISION
from .network import OPERATIONS, TABLE, initialised, make_host_trainable
from .pair_pictures import crops, disturbed, estimates, renders, scenes_of
from .pair_texts import NAMED, TOKENS, VOCABULARY, Text, draw, fields, rows, scene_fields, truth
from .train_vae import WORK

BATCH, LEARNING_RATE, WARM_UP, EMA = 64, 1e-3, 200, 0.998
REPLAYS, STRENGTH = 3, 6 / 255  # of the perturbation, in 0..1
PEACE = 0.15  # share of the run without perturbation; it grows up to twice that
CERTAINTY, COLDEST = 10.0, 30.0  # what the cosine is multiplied by, at first and at most
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Towers(nn.Module):
    """Both towers as the host builds them; the text tower holds only the words and places in use."""

    def __init__(self):
        super().__init__()
        config = clip_pair.TEXT_CONFIG | {"max_position_embeddings": TOKENS}
        self.text = initialised(comfy.clip_model.CLIPTextModel(config, None, None, OPERATIONS))
        self.text.set_input_embeddings(OPERATIONS.Embedding(len(VOCABULARY), clip_pair.JOINT))
        nn.init.normal_(self.text.get_input_embeddings().weight, std=0.3)
        nn.init.normal_(self.text.text_model.embeddings.position_embedding.weight, std=0.1)
        vision = comfy.clip_model.CLIPVisionModelProjection(clip_pair.VISION_CONFIG, None, None, OPERATIONS)
        self.vision = initialised(vision)
        nn.init.normal_(self.vision.vision_model.embeddings.class_embedding, std=0.1)
        nn.init.normal_(self.vision.vision_model.embeddings.position_embedding.weight, std=0.1)
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(CERTAINTY))), nn.Parameter(torch.tensor(-CERTAINTY))
        self.requires_grad_(True)

    def read(self, texts: list[Text]) -> Tensor:
        """Unit embeddings (m, joint) of texts, as the host pools them: at the first end token."""
        ids, lengths = zip(*map(rows, texts), strict=True)
        embeddings = self.text.get_input_embeddings()(torch.tensor(ids))
        return F.normalize(self.text(embeds=embeddings, num_tokens=list(lengths))[2].float(), dim=-1)

    def see(self, pictures: Tensor) -> Tensor:
        """Unit embeddings (n, joint) of pictures (n, 3, 64, 64) in 0..1."""
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        return F.normalize(self.vision(pixel_values=(pictures - mean) / std)[2].float(), dim=-1)

    def logits(self, pictures: Tensor, texts: list[Text]) -> Tensor:
        """(n, m): how sure they are that a text is true of a picture."""
        with torch.autocast("cpu", torch.bfloat16):
            cosine = self.see(pictures) @ self.read(texts).T
        return self.scale.exp().clamp(max=COLDEST) * cosine.float() + self.bias


class Data:
    """Renders and estimates, half of each in a batch, with texts and which of them are true."""

    def __init__(self, work: Path, count: int):
        fresh = scenes_of(count, 4)
        scenes, pictures = estimates(work, count)
        self.pools = [(fresh, scene_fields(fresh), renders(fresh)), (scenes, scene_fields(scenes), pictures)]
        self.rng = random.Random(5)

    def draw(self) -> tuple[Tensor, list[Text], Tensor, Tensor]:
        """Pictures (BATCH, 3, 64, 64), texts, and (BATCH, texts): whether true, whether decided."""
        drawn = [torch.randint(len(pool[0]), (BATCH // 2,)) for pool in self.pools]
        pairs = list(zip(self.pools, drawn, strict=True))
        scene = {key: torch.cat([pool[1][key][at] for pool, at in pairs]) for key in self.pools[0][1]}
        pictures, seen = crops(torch.cat([pool[2][at] for pool, at in pairs]), scene["place"])
        there = torch.arange(2) < scene["count"][:, None]
        told = {draw(pool[0][index], self.rng) for pool, at in pairs for index in at.tolist()}
        texts = [*NAMED, *sorted(told - set(NAMED), key=str)]
        true, possible = truth(scene, {key: mask & there for key, mask in seen.items()}, fields(texts))
        return disturbed(pictures), texts, true, true == possible


class Training:
    """Everything that changes while training."""

    def __init__(self):
        self.towers = Towers()
        self.optimizer = torch.optim.AdamW(
            self.towers.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        self.ema = {key: value.clone() for key, value in self.towers.state_dict().items()}
        self.step = 0

    def update(self, pictures: Tensor, texts: list[Text], true: Tensor, decided: Tensor) -> tuple[float, Tensor]:
        """One step; the loss and its gradient by the pictures."""
        pictures = pictures.detach().requires_grad_()
        logits = self.towers.logits(pictures, texts)
        loss = F.binary_cross_entropy_with_logits(logits, true.float(), decided.float(), reduction="sum") / BATCH
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.towers.state_dict().values()), 1 - decay)
        return loss.item(), pictures.grad


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m demo.shapes train_clip", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long to train")
    parser.add_argument("--scenes", type=int, default=10000, help="renders, and as many estimates, to train on")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what is learned")
    wanted = parser.parse_args(argv)
    torch.manual_seed(0)
    random.seed(0)
    wanted.work.mkdir(parents=True, exist_ok=True)
    data = Data(wanted.work, wanted.scenes)
    make_host_trainable()
    training = Training()
    train(training, data, wanted.minutes * 60)
    text, vision = files(training.ema)
    save_file(text, wanted.work / CLIP_TEXT.name)
    save_file(vision, wanted.work / CLIP_VISION.name)


def train(training: Training, data: Data, total: float) -> None:
    """Trains for `total` seconds."""
    start, done, losses, reported = time.monotonic(), 0.0, [], 0
    while done < 1:
        pictures, texts, true, decided = data.draw()
        strength = STRENGTH * min(1.0, max(0.0, done / PEACE - 1))
        perturbation = strength * torch.empty_like(pictures).uniform_(-1, 1)
        for _ in range(REPLAYS if strength else 1):
            done = min(1.0, (time.monotonic() - start) / total)
            training.optimizer.param_groups[0]["lr"] = _learning_rate(training.step, done)
            loss, gradient = training.update(pictures + perturbation, texts, true, decided)
            perturbation = (perturbation + strength * gradient.sign()).clamp(-strength, strength)
            losses.append(loss)
        if training.step - reported >= 100 or done == 1:
            reported, recent = training.step, losses[-100:]
            scale, bias = training.towers.scale.exp().item(), training.towers.bias.item()
            print(
                f"{time.monotonic() - start:6.0f}s step {training.step} loss {sum(recent) / len(recent):.4f} "
                f"scale {scale:.1f} bias {bias:.1f} strength {strength:.4f}",
                flush=True,
            )


def files(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The text and the vision tower with the keys and in the sizes the host's loaders expect, fp16."""
    parts = {}
    for tower in ("text", "vision"):
        parts[tower] = {key[len(tower) + 1 :]: value for key, value in weights.items() if key.startswith(f"{tower}.")}
    config, text = clip_pair.TEXT_CONFIG, parts["text"]
    table = torch.zeros(config["vocab_size"], clip_pair.JOINT)
    text[TABLE] = table.index_copy(0, torch.tensor(VOCABULARY), text[TABLE])
    places = text[clip_pair.TEXT_MARK[0]]
    text[clip_pair.TEXT_MARK[0]] = F.pad(places, (0, 0, 0, config["max_position_embeddings"] - len(places)))
    return tuple({key: value.half().contiguous() for key, value in part.items()} for part in parts.values())


def _learning_rate(step: int, done: float) -> float:
    """Warm-up, then a cosine down to 2%."""
    return LEARNING_RATE * min(1, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
