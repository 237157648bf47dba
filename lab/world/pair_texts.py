"""What the CLIP pair reads: captions of shapes scenes, whole and shortened, and of which pictures they are true."""

import random
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from .data import BACKGROUNDS, COLORS, RELATIONS, SHAPES, Scene
from .vocabulary import END, IDS, START, token_ids

TOKENS = 16  # start, the longest caption's twelve words and end; the tower is causal, so what follows does not matter
VOCABULARY = sorted([START, END, *IDS.values()])
ROW = {token: row for row, token in enumerate(VOCABULARY)}
ANY = -1


@dataclass(frozen=True)
class Text:
    """A caption by what it says; None for what it leaves open."""

    objs: tuple[tuple[str | None, str], ...] = ()
    rel: str | None = None
    bg: str | None = None

    def __str__(self) -> str:
        objs = [f"a {color} {shape}" if color else f"a {shape}" for color, shape in self.objs]
        front, back = f" {self.rel} ".join(objs), f"a {self.bg} background"
        return " on ".join(part for part in (front, back if self.bg else "") if part)

    @cached_property
    def whole(self) -> bool:
        """Whether it tells everything, and so how many objects there are."""
        return bool(self.objs) and self.bg is not None


NAMED = [Text(((color, shape),)) for color in COLORS for shape in SHAPES]  # "a red circle" and so on


def variants(scene: Scene) -> dict[str, list[Text]]:
    """The captions true of a scene, by kind."""
    pairs, bg = tuple((obj["color"], obj["shape"]) for obj in scene["objs"]), scene["bg"]
    return {
        "whole": [Text(pairs, scene["rel"], bg)],
        "named": [Text((pair,)) for pair in pairs],
        "shape": [Text(((None, shape),)) for _, shape in pairs],
        "no background": [Text(pairs, scene["rel"])],
        "background": [Text(bg=bg)],
    }


def draw(scene: Scene, rng: random.Random) -> Text:
    """One of them: half the time the whole caption."""
    kinds = variants(scene)
    (kind,) = rng.choices(list(kinds), (0.5, 0.1, 0.2, 0.1, 0.1))
    return rng.choice(kinds[kind])


@cache
def rows(text: Text) -> tuple[tuple[int, ...], int]:
    """The caption's rows in VOCABULARY, TOKENS of them, and how many count, the end included."""
    ids = token_ids(str(text))[:TOKENS]
    return tuple(ROW[token] for token in ids), ids.index(END) + 1


def fields(texts: list[Text]) -> dict[str, Tensor]:
    """The texts as numbers: colors, shapes (m, 2), rel, bg, count (m,), ANY where nothing is said."""
    number = [_numbers(text.objs, text.rel, text.bg) for text in texts]
    out = {key: torch.tensor([one[key] for one in number]) for key in number[0]}
    return out | {"whole": torch.tensor([text.whole for text in texts])}


def scene_fields(scenes: list[Scene]) -> dict[str, Tensor]:
    """Scenes as numbers: as `fields`, and place (n, 2, 3): centre and radius of each object in pixels."""
    number = [_numbers([(o["color"], o["shape"]) for o in s["objs"]], s["rel"], s["bg"]) for s in scenes]
    out = {key: torch.tensor([one[key] for one in number]) for key in number[0]}
    places = [[(o["cx"], o["cy"], o["r"]) for o in s["objs"]] for s in scenes]
    return out | {"place": torch.tensor([(place * 2)[:2] for place in places])}


def truth(scene: dict[str, Tensor], seen: dict[str, Tensor], text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(true, possible), bool (n, m): is it true of picture n what text m says; not true but possible is undecided.

    `scene` and `text` as from `scene_fields` and `fields`; `seen` holds "certain" and "possible", bool (n, 2): whether
    each object is in the picture.
    """
    colors = _agree(text["colors"], scene["colors"])  # (n, m, said, there)
    shapes = _agree(text["shapes"], scene["shapes"])
    same, said = colors & shapes, text["shapes"] != ANY
    bg = (text["bg"] == ANY) | (text["bg"] == scene["bg"][:, None])
    found = {key: same & mask[:, None, None] for key, mask in seen.items()}
    alone = {key: (found[key].any(-1) | ~said).all(-1) & bg for key in found}
    ordered = {key: found[key][..., 0, 0] & found[key][..., 1, 1] for key in found}
    swapped = found["possible"][..., 0, 1] & found["possible"][..., 1, 0]
    other = (text["rel"] != scene["rel"][:, None]) & (scene["rel"] != ANY)[:, None]
    two = text["rel"] != ANY
    true = torch.where(two, ordered["certain"] & ~other & bg, alone["certain"])
    possible = torch.where(two, (ordered["possible"] | other & swapped) & bg, alone["possible"])
    miscounted = text["whole"] & (text["count"] != seen["possible"].sum(-1, keepdim=True))
    return true & ~miscounted, possible


def _numbers(objs, rel: str | None, bg: str | None) -> dict:
    names = list(COLORS)
    colors = [names.index(color) if color else ANY for color, _ in objs]
    shapes = [SHAPES.index(shape) for _, shape in objs]
    fill = [ANY] * (2 - len(shapes))
    return {
        "colors": colors + fill,
        "shapes": shapes + fill,
        "rel": RELATIONS.index(rel) if rel else ANY,
        "bg": list(BACKGROUNDS).index(bg) if bg else ANY,
        "count": len(shapes),
    }


def _agree(said: Tensor, there: Tensor) -> Tensor:
    """(n, m, 2, 2): whether what text m says of its first or second object holds for picture n's first or second."""
    said = said[None, :, :, None]
    return (said == ANY) | (said == there[:, None, None, :])
