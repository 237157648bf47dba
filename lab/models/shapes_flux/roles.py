"""What the text encoder learns first about captions of pictures; see `caption_roles.py`."""

from ...world.data import BACKGROUNDS, COLORS, SHAPES, Scene, caption
from ..caption_roles import Roles

COLOR_NAMES = list(dict.fromkeys([*COLORS, *BACKGROUNDS]))
SIDES = {"left of": ("left", "right"), "above": ("top", "bottom"), None: ("alone",)}
NAMES = (COLOR_NAMES, [*SHAPES, "none"], ["alone", "left", "right", "top", "bottom", "background"])
SIZES = tuple(map(len, NAMES))


def roles_in(scene: Scene) -> Roles:
    """At each object's colour and shape: its colour, shape and side; at the background's colour that it is one."""
    sided = zip(scene["objs"], SIDES[scene["rel"]], strict=True)
    things = [(obj["color"], obj["shape"], side) for obj, side in sided for _ in range(2)]
    things.append((scene["bg"], "none", "background"))
    numbers = [[names.index(name) for names, name in zip(NAMES, thing, strict=True)] for thing in things]
    return dict(zip(_places(caption(scene)), numbers, strict=True))


def _places(text: str) -> list[int]:
    """Of the tokens of colours and shapes; all words are one token, but "a", which is two."""
    places, place = [], 0
    for word in text.split():
        place += word == "a"
        if word in COLOR_NAMES or word in SHAPES:
            places.append(place)
        place += 1
    return places
