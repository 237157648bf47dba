"""`locales/`: the English is what the schemas say, and every language has all of it."""

import re
import shutil

import pytest
from comfy_api.latest import io
from steer.lab.docs import locales
from steer.lab.docs.locales import FOLDERS, LANGUAGES, english, flat, read
from steer.lab.package import ROOT
from steer.nodes import METHODS

FILES = ("nodeDefs.json", "main.json")
KEPT = re.compile(r"`[^`]*`|%\w+%|\[\w+\]|\d+(?:\.\d+)?|\w+_\w+", re.ASCII)
"""What no translation changes: code, numbers, names of inputs."""


@pytest.mark.parametrize("file", FILES)
def test_english_is_what_the_schemas_say(file):
    assert flat(read("en", file)) == flat(english()[file]), "run `make docs ARGS=locales`, then translate what it lists"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("file", FILES)
def test_every_text_is_translated(language, file):
    source, translation = flat(read("en", file)), flat(read(language, file))
    assert translation.keys() == source.keys()
    for key, text in translation.items():
        assert text.strip() and text == text.strip(), key
        if key[-1] in ("tooltip", "description"):
            assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text), f"{key} is not translated"
            assert set(KEPT.findall(source[key])) <= set(KEPT.findall(text)), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_can_be_found_by_their_english(language):
    """Messages, help pages and tutorials name nodes and widgets in English."""
    texts = read(language, "nodeDefs.json")
    for schema in (node.GET_SCHEMA() for method in METHODS for node in method.NODES):
        assert texts[schema.node_id]["display_name"].endswith(f" {schema.display_name}")
        for given in schema.inputs:
            if isinstance(given, io.WidgetInput):
                assert texts[schema.node_id]["inputs"][given.id]["name"].endswith(f" ({given.id})")


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_nothing_is_read_as_a_placeholder(language):
    """The editor's translator gives `{`, `@` and `|` a meaning of their own."""
    for file in FILES:
        for key, text in flat(read(language, file)).items():
            assert not set("{}@|") & set(text), key


def test_a_text_whose_english_changed_is_translated_anew(tmp_path, monkeypatch, capsys):
    shutil.copytree(locales.LOCALES, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(locales, "LOCALES", tmp_path)
    before = {language: flat(read(language, "nodeDefs.json")) for language in ("en", *LANGUAGES)}
    key, gone = ("SteerDDIMSampler", "inputs", "eta", "tooltip"), ("SteerDDIMSampler", "inputs", "gone", "name")
    for language, texts in before.items():
        old = {key: "What it said earlier."} if language == "en" else {}
        locales.write(language, "nodeDefs.json", {**texts, gone: "gone", **old})
    locales.update()
    after = {language: flat(read(language, "nodeDefs.json")) for language in before}
    assert after.pop("en") == before["en"]
    assert all(
        texts == {k: text for k, text in before[language].items() if k != key} for language, texts in after.items()
    )
    printed = capsys.readouterr().out
    assert printed.count("eta.tooltip") == len(LANGUAGES) and before["en"][key] in printed
    assert all(before[language][key] in printed for language in LANGUAGES)


def test_the_folder_of_every_install_has_its_heading():
    project = (ROOT / "pyproject.toml").read_text()
    names = re.findall(r'^name = "(.*)"|^Repository = ".*/(.*)"', project, re.MULTILINE)
    assert {"".join(name) for name in names} == {"steer-diffusion", "ComfyUI-Steer"} <= set(FOLDERS)
    assert set(FOLDERS) == read("en", "main.json")["templateWorkflows"]["category"].keys()
