"""The program on docs/scale.md, as it stands there, on two real servers of which one is killed while it works."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image, ImageDraw
from steer.lab.comfy.server import Server
from steer.lab.package import ROOT

pytestmark = pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install ray")
ADDRESSES = '["http://127.0.0.1:8188", "http://127.0.0.1:8189"]'
NAMES = [f"picture_{number}.png" for number in range(6)]


def program(*urls):
    """The page's program, with these servers in the place of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    assert ADDRESSES in code
    return code.replace(ADDRESSES, repr(list(urls))).replace("example_workflows", str(ROOT / "example_workflows"))


def started(folder, *urls):
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}  # it keeps a token at home
    with open(folder / "errors", "w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", program(*urls)],
            cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder for the program to run in, with pictures no two of which are alike."""
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(NAMES):
        picture = Image.new("RGB", (128, 128), (30, 60, 200))
        corner = (8 + 10 * number, 60 - 8 * number)
        ImageDraw.Draw(picture).ellipse((*corner, corner[0] + 50, corner[1] + 50), (220, 40, 40))
        picture.save(tmp_path / "pictures" / name)
    return tmp_path


def results(folder):
    taken = {path.name: Image.open(path).convert("RGB").tobytes() for path in (folder / "results").iterdir()}
    for path in (folder / "results").iterdir():
        path.unlink()
    return taken


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(server, folder):
    (folder / "pictures" / "broken.png").write_text("no picture")
    with Server() as second, started(folder, server.url, second.url) as running:
        lines = []
        for line in running.stdout:
            lines.append(line.strip())
            if second.url in line and second.process.poll() is None:  # it has just been given the next picture
                os.killpg(second.process.pid, signal.SIGKILL)
                second.process.wait()
    errors = (folder / "errors").read_text()
    print(*lines, errors, sep="\n")
    assert running.returncode == 1 and "broken.png: cannot identify image file" in errors
    assert "no server is left" not in errors
    (lost,) = [line for line in lines if "goes to another server" in line]
    finished = [line.split(" by ") for line in lines if " by " in line]
    assert sorted(name for name, _ in finished) == NAMES
    assert [url for name, url in finished if lost.startswith(name)] == [server.url]
    assert {url for _, url in finished} == {server.url, second.url}
    with_two = results(folder)

    (folder / "pictures" / "broken.png").unlink()
    with started(folder, server.url) as alone:
        alone.communicate()
    assert alone.returncode == 0 and results(folder) == with_two
    assert with_two.keys() == set(NAMES) and len(set(with_two.values())) == len(NAMES)


def test_without_a_server_it_says_what_is_left(folder):
    with started(folder, "http://127.0.0.1:9") as running:
        running.communicate()
    errors = (folder / "errors").read_text()
    assert running.returncode == 1 and all(f"{name}: no server is left" in errors for name in NAMES)
