"""What `make docs` writes, on nodes made up for it: the contract grows and never changes, help keeps its words."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
from steer.lab.docs import __main__ as docs
from steer.lab.docs.contract import PATH, text_of, with_additions
from steer.lab.docs.help_inputs import BEGIN, END, head, with_inputs

STANDS = {
    "SteerOne": {
        "inputs": [["model", "MODEL", None, False], ["cfg", "FLOAT", 7.5, False]],
        "outputs": [["MODEL", None]],
    }
}
WIDE = "a" * 90


def changed(change):
    now = deepcopy(STANDS)
    change(now["SteerOne"])
    return now


def item(name, **about):
    return SimpleNamespace(**{"id": name, "tooltip": f"What {name} is.", "optional": False, **about})


def page(*lines):
    return f"# One\n\nAbove.\n\n{BEGIN}{''.join(lines)}{END}\nBelow.\n"


def test_the_contracts_file_is_written_as_it_stands():
    assert text_of(json.loads(PATH.read_text())) == PATH.read_text()


def test_a_node_and_an_optional_input_are_added():
    now = changed(lambda node: node["inputs"].append(["mask", "MASK", None, True])) | {"SteerTwo": STANDS["SteerOne"]}
    assert with_additions(STANDS, now) == now


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda node: node["inputs"].pop(), r"input 2 is nothing, and stands as \['cfg'"),
        (lambda node: node["inputs"][1].__setitem__(2, 8.0), r"input 2 is \['cfg', 'FLOAT', 8.0"),
        (lambda node: node["inputs"].reverse(), "input 1 is"),
        (lambda node: node["inputs"].insert(0, ["mask", "MASK", None, True]), "input 1 is"),
        (lambda node: node["inputs"].append(["mask", "MASK", None, False]), "the new input mask is not optional"),
        (lambda node: node["outputs"].clear(), "output 1 is nothing"),
    ],
    ids=["gone", "default", "order", "in front", "needed", "output"],
)
def test_nothing_else_is_written_into_the_contract(change, said):
    with pytest.raises(ValueError, match=f"(?s)saved workflows would break.*SteerOne: {said}"):
        with_additions(STANDS, changed(change))


def test_a_node_that_is_gone_is_refused():
    with pytest.raises(ValueError, match="SteerOne is gone"):
        with_additions(STANDS, {})


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, ""),
        ({"optional": True}, " (optional)"),
        ({"default": 10, "min": 1, "max": 100, "optional": True}, " (10; 1 to 100)"),
        ({"default": 1e-5, "min": 0.0, "max": 1e7}, " (1e-5; 0 to 1e7)"),
        ({"default": 0, "min": 0, "max": 2**64 - 1}, " (0; 0 to 2^64 - 1)"),
        ({"default": True}, " (on)"),
        ({"default": "auto"}, " (`auto`)"),
        ({"default": ""}, ""),
        ({"default": "red: cat\nblue: sky"}, ""),
    ],
    ids=str,
)
def test_what_stands_before_the_dash(about, said):
    assert head([item("one", **about)]) == f"- `one`{said}"


def test_an_input_without_words_gets_its_tooltip_and_keeps_up_with_it():
    inputs = [item("one", default=2, min=0, max=3), item("two")]
    written = with_inputs(page(), inputs, {})
    assert written == page("- `one` (2; 0 to 3) – What one is.\n", "- `two` – What two is.\n")
    assert with_inputs(written, inputs, {"one": "What one is."}) == written
    later = [item("one", default=2, min=0, max=3, tooltip="It is more."), item("two")]
    assert with_inputs(written, later, {"one": "What one is."}) == written.replace("What one is.", "It is more.")


def test_words_are_kept_whatever_becomes_of_the_numbers():
    inputs = [item("one", default=2), item("two", default=3)]
    words = f"what {WIDE}\n  is for\n  `a - b`.\n"
    had = page(f"- `one` (1), `two` (3) – {words}")
    assert with_inputs(had, inputs, {}) == page(f"- `one` (2), `two` (3) – what {WIDE}\n  is for `a - b`.\n")
    right = page(f"- `one` (2), `two` (3) – {words}")
    assert with_inputs(right, inputs, {}) == right


def test_code_is_not_broken_at_the_end_of_a_line():
    words = f"{WIDE} and `D0 + cfg (D+ - D0) - (D- - D0)`."
    written = with_inputs(page(f"- `one` – {words}\n"), [item("one", default=2)], {})
    assert "\n  `D0 + cfg (D+ - D0) - (D- - D0)`.\n" in written


def test_a_page_without_a_place_or_with_a_strange_name_is_refused():
    with pytest.raises(ValueError, match="put these two lines"):
        with_inputs("# One\n", [item("one")], {})
    with pytest.raises(ValueError, match="names none: '- `three` – what"):
        with_inputs(page("- `three` – what it is\n"), [item("one")], {})


def test_what_cannot_be_written_here_is_left_out_with_a_word(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(docs, "find_spec", lambda name: None)
    assert docs.write("pictures") and docs.write("templates")
    pictures, templates = capsys.readouterr().out.splitlines()
    assert pictures.startswith("pictures: skipped, as output has no pictures of") and "make demo" in pictures
    assert templates == "templates: skipped, as chromium or playwright is not installed"


def test_what_is_refused_fails_the_command(monkeypatch, capsys):
    monkeypatch.setitem(docs.PARTS, "contract", lambda: with_additions(STANDS, {}))
    assert not docs.write("contract")
    assert capsys.readouterr().err.startswith("contract: saved workflows would break")
    assert docs.main(["contracts"]) == 2
    monkeypatch.setattr(docs, "find_host", lambda: None)
    assert docs.main(["contract"]) == 2
    assert "there is no part contracts; the parts are contract, help" in (said := capsys.readouterr().err)
    assert "this needs ComfyUI" in said
