"""What the text encoder learns first about captions of clips; see `caption_roles.py`."""

from ...world.clips import MOTIONS, Clip, caption
from ...world.data import BACKGROUNDS, COLORS, SHAPES
from ..caption_roles import Roles

COLOR_NAMES = list(dict.fromkeys([*COLORS, *BACKGROUNDS]))
NAMES = (COLOR_NAMES, [*SHAPES, "none"], [*MOTIONS, "background"])
SIZES = tuple(map(len, NAMES))


def roles_in(clip: Clip) -> Roles:
    """At each object's colour, shape and motion: its colour, shape and motion; at the background's that it is one."""
    things = [(obj["color"], obj["shape"], obj["motion"]) for obj in clip["objs"] for _ in range(4)]
    things.append((clip["bg"], "none", "background"))
    numbers = [[names.index(name) for names, name in zip(NAMES, thing, strict=True)] for thing in things]
    return dict(zip(_places(caption(clip)), numbers, strict=True))


def _places(text: str) -> list[int]:
    """Of the tokens that are told something: all words but "a", which is two tokens, "and", "on" and "background"."""
    places, place = [], 0
    for word in text.split():
        place += word == "a"
        if word not in ("a", "and", "on", "background"):
            places.append(place)
        place += 1
    return places
