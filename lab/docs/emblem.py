"""Draw the registry's pictures of this package: a sampling path that is steered out of noise into an S.

    python -m lab.docs.emblem

writes docs/icon.png (400x400) and docs/banner.png (1680x720, the registry's 21:9).
"""

import math
import random

from PIL import Image, ImageDraw, ImageFont

from ..package import ROOT

FINER = 4  # drawn this much larger, then reduced
NIGHT, DUSK = (18, 16, 44), (74, 38, 120)
COLD, WARM = (126, 134, 190), (255, 176, 66)
PAPER = (246, 244, 252)
BOWL = 0.19  # radius of either half of the S
LINES = (
    "edit photos by words · inpaint · outpaint",
    "invert · place words · find and replace",
    "CLIP guidance · attention heatmaps",
)


def main() -> None:
    icon = ground(400, 400)
    emblem(icon, (0, 0), 400)
    mask = Image.new("L", icon.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *icon.size), 88 * FINER, 255)
    icon.putalpha(mask)
    reduced(icon).save(ROOT / "docs" / "icon.png", optimize=True)
    banner = ground(1680, 720)
    emblem(banner, (90, 60), 600)
    words(banner)
    reduced(banner).convert("RGB").save(ROOT / "docs" / "banner.png", optimize=True)


def ground(width: int, height: int) -> Image.Image:
    """Night, lighter towards the lower right."""
    across = Image.linear_gradient("L").rotate(90).resize((width * FINER, height * FINER))
    down = Image.linear_gradient("L").resize(across.size)
    return Image.composite(
        Image.new("RGB", across.size, DUSK), Image.new("RGB", across.size, NIGHT), Image.blend(across, down, 0.5)
    )


def emblem(picture: Image.Image, corner: tuple[int, int], side: int) -> None:
    """The path in a square: dots that draw together, a line that comes out of them, and where it arrives."""
    draw, chance = ImageDraw.Draw(picture), random.Random(5)

    def dot(x: float, y: float, radius: float, colour: tuple) -> None:
        left, top, r = (corner[0] + x * side) * FINER, (corner[1] + y * side) * FINER, radius * side * FINER
        draw.ellipse((left - r, top - r, left + r, top + r), fill=colour)

    for _ in range(420):
        along = chance.random() ** 1.3 * 0.5
        x, y = path(along)
        spread = 0.1 * (1 - along / 0.5) ** 1.2
        dot(x + chance.gauss(0, spread), y + chance.gauss(0, spread), chance.uniform(0.004, 0.01), mixed(along))
    for step in range(1201):
        along = 0.2 + 0.8 * step / 1200
        dot(*path(along), 0.042 * min((along - 0.2) / 0.3, 1.0), mixed(along))
    dot(*path(1.0), 0.08, mixed(1.0))
    dot(*path(1.0), 0.04, PAPER)


def path(along: float) -> tuple[float, float]:
    """The S, from its lower left end (0) to its upper right one (1), in a square of side 1."""
    lower = along < 0.5
    turn = math.radians(160 - 500 * along if lower else 500 * along - 160)  # from 0, the right, downwards
    return 0.5 + BOWL * math.cos(turn), 0.5 + BOWL * (1 if lower else -1) + BOWL * math.sin(turn)


def mixed(along: float) -> tuple:
    share = min(max((along - 0.15) / 0.6, 0.0), 1.0)
    return tuple(round(cold + (warm - cold) * share) for cold, warm in zip(COLD, WARM, strict=True))


def words(banner: Image.Image) -> None:
    draw = ImageDraw.Draw(banner)

    def line(top: int, size: int, text: str, colour: tuple, bold: float = 0.0) -> None:
        font = ImageFont.load_default(size * FINER)
        width = round(bold * FINER)
        draw.text((760 * FINER, top * FINER), text, colour, font, stroke_width=width, stroke_fill=colour)

    line(120, 170, "Steer", PAPER, 3)
    line(330, 46, "Training-free control for ComfyUI", WARM, 0.5)
    for number, text in enumerate(LINES):
        line(430 + 56 * number, 36, text, PAPER)


def reduced(picture: Image.Image) -> Image.Image:
    return picture.reduce(FINER)


if __name__ == "__main__":
    main()
