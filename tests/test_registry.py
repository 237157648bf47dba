"""What the ComfyUI registry is told of this package, and what of it users get."""

import re
import subprocess

import pytest
from PIL import Image
from steer.lab.package import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11's reader of TOML")
USERS = {
    *("attention", "files", "nodes", "pictures", "samplers"),
    *("web", "locales", "example_workflows", "subgraphs", "docs"),
    *("__init__.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
}


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_registry_has_what_it_asks_for(pyproject):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"]) and "comfy" not in project["name"].lower()
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file()
    assert set(project["urls"]) >= {"Repository", "Documentation", "Issues"}
    assert comfy["PublisherId"] and comfy["DisplayName"] and re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert project["dependencies"] == []  # ComfyUI's own are enough


@pytest.mark.parametrize(
    "name", ["Prompt-to-Prompt", "RePaint", "SDEdit", "DiffEdit", "Paint with Words", "inversion", "null-text", "CLIP"]
)
def test_the_description_names_what_is_here(pyproject, name):
    assert name in pyproject["project"]["description"]
    assert "\n" not in pyproject["project"]["description"]


@pytest.mark.parametrize("field, size", [("Icon", (400, 400)), ("Banner", (1680, 720))])
def test_pictures_are_where_their_addresses_say(pyproject, field, size):
    repository = pyproject["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    start = f"https://raw.githubusercontent.com/{repository}/main/"
    address = pyproject["tool"]["comfy"][field]
    assert address.startswith(start)
    with Image.open(ROOT / address.removeprefix(start)) as picture:
        assert (picture.format, picture.size) == ("PNG", size)


def test_the_version_has_its_part_in_the_changelog(pyproject):
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(version for version in versions if version != "Unreleased") == pyproject["project"]["version"]


def test_users_get_what_they_use_and_no_more():
    """The registry packs git's files but those that `.comfyignore` names."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked, left_out = files(), files("--ignored", "--exclude-from=.comfyignore")
    assert {path.partition("/")[0] for path in tracked - left_out} <= USERS
    assert not {path for path in left_out if path.partition("/")[0] in USERS - {"docs"}}
    assert {"locales/zh/nodeDefs.json", "web/steer.js", "nodes/__init__.py"} <= tracked - left_out


def files(*options):
    command = ["git", "ls-files", "--cached", "-z", *options]
    return set(filter(None, subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")))


def test_a_version_tag_publishes():
    workflow = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    assert 'tags: ["v*"]' in workflow and "Comfy-Org/publish-node-action@v1" in workflow
    assert "${{ secrets.REGISTRY_ACCESS_TOKEN }}" in workflow
