"""The templates for users: the same graphs as the API forms, whole, with what a newcomer needs in them."""

import numpy as np
import pytest
from PIL import Image
from steer.lab.demo.runner import load_workflow, workflow_names
from steer.lab.docs.template_table import FLUX, MODELS, QWEN, SDXL, TABLE, TOY, WAN, WITHOUT_TEMPLATE, ZIMAGE
from steer.lab.docs.templates import EXAMPLES, is_front, prompt_of, saved, templates, undone

PICTURES = EXAMPLES / "pictures"
TITLE = 30  # pixels drawn above a node's position
ALL = {each.name: each for each in templates()}
FRONT = [name for name, each in ALL.items() if is_front(each)]


@pytest.fixture(params=ALL)
def template(request):
    return ALL[request.param]


@pytest.fixture
def nodes(template):
    return saved(template)["nodes"]


def test_every_file_is_there_and_none_of_another():
    forms = {path.stem for path in EXAMPLES.glob("*.json") if not path.stem.endswith(".app")}
    thumbnails = {path.stem for path in EXAMPLES.glob("*.jpg") if not path.stem.endswith(".app")}
    assert forms == thumbnails == set(ALL)
    assert sorted({each.api for each in ALL.values()} | set(WITHOUT_TEMPLATE)) == workflow_names()
    assert not {each.api for each in ALL.values()} & set(WITHOUT_TEMPLATE)


def test_the_list_reads_as_a_path():
    assert [name[:8] for name in FRONT] == [f"Steer {number:02}" for number in range(1, 13)]
    for family in (SDXL, FLUX, ZIMAGE, QWEN, WAN):
        named = {each.name.split(", ")[-1] for each in ALL.values() if each.family is family}
        assert named == {family.name}
    assert sum(each.family is SDXL for each in ALL.values()) == 7


def test_with_the_swaps_undone_it_is_the_api_form(template):
    api, prompt = bare(load_workflow(template.api)), prompt_of(template)
    assert undone(prompt, template) == api
    assert (bare(prompt) == api) == (template.family is TOY and not template.compare)


def bare(prompt):
    """A prompt without its titles."""
    return {node: {name: entry[name] for name in ("class_type", "inputs")} for node, entry in prompt.items()}


def test_a_note_says_what_it_is_for(template, nodes):
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    (text,) = note["widgets_values"]
    for part in (template.heading, template.what, "1. **Load**", "2. **Describe**", "3. **Run**", template.main):
        assert part in text
    assert 2 <= len(template.knobs) <= 3
    assert (EXAMPLES.parent / "web" / "docs" / f"{template.main}.md").is_file()


def test_every_node_is_in_one_group(template, nodes):
    groups = saved(template)["groups"]
    assert [group["title"] for group in groups][-2:] == ["3 Steer", "4 Result"]
    for node in nodes:
        (x, y), (width, height) = node["pos"], node["size"]
        around = [
            title
            for title, (left, top, wide, high) in ((group["title"], group["bounding"]) for group in groups)
            if left <= x and x + width <= left + wide and top <= y - TITLE and y + height <= top + high
        ]
        assert len(around) == (node["type"] != "MarkdownNote"), (node["type"], around)


def test_nodes_and_groups_do_not_overlap(template, nodes):
    boxes = [(x, y - TITLE, width, height + TITLE) for (x, y), (width, height) in positions(nodes)]
    assert overlaps(boxes) == []
    assert overlaps([group["bounding"] for group in saved(template)["groups"]]) == []


def positions(nodes):
    return [(node["pos"], node["size"]) for node in nodes]


def overlaps(boxes):
    """Pairs of (left, top, width, height) that have pixels in common."""
    return [
        (one, other)
        for number, one in enumerate(boxes)
        for other in boxes[:number]
        if one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    ]


def test_a_model_is_on_offer_for_every_file(template, nodes):
    """All but the toy's, which nobody offers, and the note says so."""
    loaded = [
        (node, name)
        for node in nodes
        if node["type"].startswith("Load") or "Loader" in node["type"]
        for name in node["widgets_values"]
        if str(name).endswith((".safetensors", ".pth"))
    ]
    offered = {model["name"] for node in nodes for model in node["properties"].get("models", [])}
    if template.family is TOY:
        assert offered == set() and "nobody offers" in template.what
        return
    assert {name for _, name in loaded} == offered
    for node, name in loaded:
        (model,) = node["properties"]["models"]
        assert model["name"] == name and model["directory"] == MODELS[name][1]
        assert model["url"].startswith(("https://huggingface.co/", "https://civitai.com/"))


def test_every_picture_comes_with_the_package(nodes):
    there = {path.name for path in PICTURES.iterdir()}
    named = [
        value.removesuffix(" [input]")
        for node in nodes
        if node["type"] in ("LoadImage", "Painter")
        for value in node["widgets_values"][:1]
    ]
    assert set(named) <= there


def test_the_pictures_are_small_and_said_where_from():
    said = (PICTURES / "README.md").read_text()
    for path in PICTURES.glob("steer_*"):
        assert f"`{path.name}`" in said
        assert path.stat().st_size < (150_000 if path.name == "steer_clip.webp" else 60_000)
        assert Image.open(path).size == ((448, 256) if path.name.startswith("steer_clip") else (512, 512))


def test_the_hole_still_has_its_colours():
    hole = np.asarray(Image.open(PICTURES / "steer_coffee_hole.webp").convert("RGBA"))
    whole = np.asarray(Image.open(PICTURES / "steer_coffee.webp").convert("RGB"))
    inside = hole[..., 3] == 0
    assert 0.2 < inside.mean() < 0.6
    assert np.abs(hole[..., :3][inside].astype(int) - whole[inside]).mean() < 6


def test_titles_keep_the_nodes_own_names(template, nodes):
    for node in nodes:
        if node["type"].startswith("Steer"):
            assert "(Steer)" in node.get("title", "its own name (Steer)")


def test_edits_end_in_a_comparison():
    edits = [each for each in TABLE if each.compare]
    assert len(edits) > 20
    for each in edits:
        (compare,) = (node for node in saved(each)["nodes"] if node["type"] == "ImageCompare")
        assert compare["properties"]["steer_optional"] and all(wire["link"] for wire in compare["inputs"][:2])
        assert any(node["type"] == "SaveImage" for node in saved(each)["nodes"])
