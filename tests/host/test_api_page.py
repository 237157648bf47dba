"""The programs on docs/api.md and in the README, as they stand there, against a real server."""

import re
import subprocess
import sys

from steer.lab.demo.runner import load_workflow
from steer.lab.package import ROOT

OWN = {
    "http://127.0.0.1:8188": "{url}",
    "v1-5-pruned-emaonly-fp16.safetensors": "shapes.safetensors",
    "width=512, height=512": "width=128, height=128",
    "a cat on a sofa": "a red heart on a white background",
    "a dog on a sofa": "a blue heart on a white background",
}


def program(url, page="docs/api.md"):
    """The page's program, with what the shapes checkpoint needs in the place of SD1.5's."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for theirs, ours in OWN.items():
        assert theirs in code
        code = code.replace(theirs, ours.format(url=url))
    return code.replace("example_workflows", str(ROOT / "example_workflows"))


def run(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


def test_it_saves_the_pictures(server, tmp_path):
    done = run(program(server.url), tmp_path)
    names = [name for name in done.stdout.splitlines() if name.endswith(".png")]
    saves = [node for node in load_workflow("prompt_to_prompt").values() if node["class_type"] == "SaveImage"]
    assert done.returncode == 0 and len(names) == len(saves) > 1
    assert {path.name for path in tmp_path.glob("*.png")} == set(names)


def test_it_ends_with_the_nodes_own_message(server, tmp_path):
    done = run(program(server.url).replace('target="', 'equalizer="nowhere: 2", target="'), tmp_path)
    assert done.returncode == 1 and "'nowhere'" in done.stderr and not list(tmp_path.iterdir())


def test_the_readmes_leaves_pictures_in_the_output_folder(server, tmp_path):
    done = run(program(server.url, "README.md"), tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("success ")
    names = re.findall(r"'filename': '(.+?)'", done.stdout)
    assert len(names) > 1 and all((server.folder / "output" / "steer" / name).is_file() for name in names)
