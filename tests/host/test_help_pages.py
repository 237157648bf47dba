"""What every help page has beside its inputs (test_docs.py): a picture first, at the end symptoms and a template."""

import re

import pytest
from PIL import Image
from steer.lab.package import ROOT
from steer.nodes import METHODS

DOCS, TEMPLATES = ROOT / "web" / "docs", ROOT / "example_workflows"
SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for method in METHODS for node in method.NODES)}
SHORT = {schema.display_name.removesuffix(" (Steer)"): name for name, schema in SCHEMAS.items()}
KILOBYTES, WIDTH = 30, 480
IN_NO_TEMPLATE = {"SteerRegion"}  # its page says what it takes the place of


@pytest.fixture(params=SCHEMAS)
def page(request):
    """(node id, text) of a help page."""
    return request.param, (DOCS / f"{request.param}.md").read_text()


def inputs(name):
    return {item.id: item for item in SCHEMAS[name].inputs}


def values(name):
    """The values of the node's combos."""
    return {value for item in SCHEMAS[name].inputs for value in getattr(item, "options", None) or []}


def quoted(text):
    """The words in backticks that look like a name of an input."""
    return set(re.findall(r"`([a-z_]+)`", text))


def ending(text):
    """(the symptoms, one line each, the last line)"""
    *lines, last = text.split("\n## If it goes wrong\n\n")[1].strip().split("\n")
    return [" ".join(item.split()) for item in re.split(r"^- ", "\n".join(lines), flags=re.M)[1:]], last


def test_there_is_a_page_for_each_node_and_no_other():
    assert {path.stem for path in DOCS.glob("*.md")} == set(SCHEMAS)
    assert {path.stem for path in (DOCS / "pictures").iterdir()} == set(SCHEMAS)


def test_begins_with_a_small_picture(page):
    name, text = page
    title, picture, caption = text.split("\n\n")[:3]
    assert title == f"# {SCHEMAS[name].display_name}"
    words, path = re.fullmatch(r"!\[(.+)\]\((.+)\)", picture).groups()
    assert len(words) > 20 and caption.startswith("*") and caption.endswith("*")
    assert (DOCS / path).stat().st_size < KILOBYTES * 1024
    with Image.open(DOCS / path) as opened:
        assert opened.width == WIDTH


def test_ends_with_three_symptoms_and_their_knobs(page):
    """Each names inputs of this node or of the Steer nodes that it names in italics, or values of combos."""
    name, text = page
    symptoms, _ = ending(text)
    assert len(symptoms) == 3
    for symptom in symptoms:
        of = [name, *(SHORT[words] for words in re.findall(r"\*(.+?)\*", symptom) if words in SHORT)]
        knobs = set().union(*map(inputs, of))
        assert ": " in symptom and quoted(symptom) & knobs, symptom
        assert quoted(symptom) <= knobs.union(*map(values, of)), symptom


def test_ends_with_a_template_that_has_the_node(page):
    name, text = page
    stem = re.match(r"Template: \*(Steer \d\d - .+?)\*", ending(text)[1])[1]
    template = (TEMPLATES / f"{stem}.json").read_text()
    assert f'"{name}"' in template or name in IN_NO_TEMPLATE
