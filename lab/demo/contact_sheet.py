"""One picture of many: a grid of captioned pictures, to see at a glance what came out."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 224  # pixels a picture may take, either way
GAP = 18
CAPTION_LINES = 4
TEXT = ImageFont.load_default(15)
HEADING = ImageFont.load_default(24)
LINE = 19
HEADER = 64
INK, FAINT, PAPER, HOLE = "#1c1c1e", "#d0d0d4", "#ffffff", "#808080"


def contact_sheet(items: list[tuple[Image.Image, str]], path: Path, title: str, columns: int = 4) -> None:
    """Write the (picture, caption) pairs to `path` as a titled grid, in reading order. ValueError when empty."""
    if not items:
        raise ValueError("a contact sheet needs at least one picture, got none")
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    cell_height = CELL + GAP // 2 + CAPTION_LINES * LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), HEADER + rows * cell_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, HEADING)
    for number, (picture, caption) in enumerate(items):
        left = GAP + number % columns * (CELL + GAP)
        top = HEADER + number // columns * cell_height
        _place(sheet, draw, picture, left, top)
        draw.multiline_text((left, top + CELL + GAP // 2), wrapped(caption), INK, TEXT, spacing=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def wrapped(caption: str) -> str:
    """The caption broken into lines that fit a cell; what is over the last line ends in an ellipsis."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if TEXT.getlength(longer) <= CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > CAPTION_LINES:
        lines[CAPTION_LINES - 1] += " …"
    return "\n".join(lines[:CAPTION_LINES])


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, left: int, top: int) -> None:
    """Paste the picture into its cell: as large as fits, whole, centred, on a frame."""
    scale = CELL / max(picture.size)
    size = tuple(round(side * scale) for side in picture.size)
    whole = Image.alpha_composite(Image.new("RGBA", picture.size, HOLE), picture.convert("RGBA"))
    shown = whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    corner = (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2)
    sheet.paste(shown, corner)
    draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + size[0], corner[1] + size[1]), outline=FAINT)
