"""The demo's server: what a client gets from it, and that it never outlives its `with` block."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from steer.lab.comfy.server import HostError, Server
from steer.lab.demo.runner import load_workflow
from steer.lab.package import ROOT
from steer.tests.cases import some

EMPTY_PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 255}}
STARTED_AND_KILLED = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
import sys; sys.path.insert(0, {root!r})
from lab.package import load_steer
load_steer()
from steer.lab.comfy.server import Server
import time
with Server() as server:
    print(server.process.pid, flush=True)
    time.sleep(60)
"""


def saving(node, output=0):
    return {"class_type": "SaveImage", "inputs": {"images": [node, output], "filename_prefix": "test"}}


def alive(pid):
    """Whether the process runs (a zombie does not)."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_runs_a_prompt_and_gives_its_pictures(server):
    seen = []
    outputs = server.run({"1": EMPTY_PICTURE, "2": saving("1")}, progress=lambda *step: seen.append(step))
    pictures = server.images(outputs)
    assert [(node, picture.size) for node, picture in pictures] == [("2", (32, 16))] * 2
    assert pictures[0][1].getpixel((0, 0)) == (0, 0, 255)
    assert ("2", 0.0) in seen


def test_a_refused_prompt_names_the_node(server):
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nothing.safetensors"}}
    decoded = {"class_type": "VAEDecode", "inputs": {"samples": ["9", 0], "vae": ["7", 2]}}
    latent = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    with pytest.raises(HostError, match=r"node 7 \(CheckpointLoaderSimple\).*nothing.safetensors") as caught:
        server.run({"7": loader, "9": latent, "8": decoded, "2": saving("8")})
    assert caught.value.node_id == "7"
    assert "7" in caught.value.node_errors


def test_a_prompt_refused_in_part_is_refused(server):
    """The host would run the outputs that are valid and leave the others out without a word."""
    slow, broken = load_workflow("repaint"), saving("999")
    with pytest.raises(HostError, match=r"node 900 \(SaveImage\)") as caught:
        server.run({**slow, "900": broken})
    assert caught.value.node_id == "900"
    assert server.run({"1": EMPTY_PICTURE, "2": saving("1")}), "ready for the next prompt"


def test_a_failing_node_is_named(server):
    """The host accepts this prompt; it fails while it runs, on a picture scaled down to nothing."""
    shrunk = {"class_type": "ImageScaleBy", "inputs": {"image": ["1", 0], "upscale_method": "area", "scale_by": 0.01}}
    with pytest.raises(HostError, match=r"node 5 \(SaveImage\): .") as caught:
        server.run({"1": EMPTY_PICTURE, "2": shrunk, "5": saving("2")})
    assert (caught.value.node_id, caught.value.node_type) == ("5", "SaveImage")
    assert caught.value.exception_type and caught.value.exception_message
    assert server.run({"1": EMPTY_PICTURE, "2": saving("1")}), "ready for the next prompt"


def test_interrupt_ends_the_run_and_leaves_the_host_ready(server):
    slow = load_workflow("repaint")
    with pytest.raises(HostError, match="interrupted"):
        server.run(slow, progress=lambda node, fraction: fraction and server.interrupt())
    assert server.run({"1": EMPTY_PICTURE, "2": saving("1")})


def test_two_clients_and_two_cancellations(server):
    """What is kept is what it is alone; each client is told of its own; what is stopped ends."""

    def prompt(seed):
        prompt = load_workflow("text_to_image")
        prompt["7"]["inputs"]["steps"], prompt["8"]["inputs"]["noise_seed"] = 4, seed
        return prompt

    def pictures(outputs):
        return [picture.tobytes() for _, picture in server.images(outputs)]

    def follow(client, expected):
        told = []
        for event in client.events(60):
            told.append(event)
            if event.prompt_id == running and event.fraction and not stopped:
                stopped.append(event.fraction)
                server.cancel(running)
            if {event.prompt_id for event in told if event.node is None} == expected:
                return told

    alone, stopped = [pictures(server.run(prompt(seed))) for seed in (1, 2)], []
    with server.client() as first, server.client() as second, ThreadPoolExecutor(2) as threads:
        running, waiting = first.queue(load_workflow("repaint")), second.queue(prompt(3))
        kept = [first.queue(prompt(1)), second.queue(prompt(2))]
        assert server.cancel(waiting)
        told = list(threads.map(follow, (first, second), ({running, kept[0]}, {kept[1]})))
    assert [pictures(server.outputs(each)) for each in kept] == alone and alone[0] != alone[1]
    assert {event.prompt_id for event in told[0]} == {running, kept[0]}
    assert {event.prompt_id for event in told[1]} == {kept[1]}
    steps = [event.fraction for event in told[0] if event.prompt_id == running and event.fraction]
    assert stopped == steps[:1] and steps[-1] < 0.5
    with pytest.raises(HostError, match="interrupted") as caught:
        server.outputs(running)
    assert caught.value.exception_type == "execution_interrupted"
    assert not server.get_json(f"/history/{waiting}")
    assert not server.cancel(running), "it has ended"


def test_log_says_what_was_loaded(server):
    assert "steer-diffusion-checkout" in server.log()
    assert "IMPORT FAILED" not in server.log()


def test_shut_down_after_an_exception():
    with pytest.raises(ZeroDivisionError), Server() as own:
        pid, folder = own.process.pid, own.folder
        raise ZeroDivisionError
    assert not alive(pid)
    assert not folder.exists()


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
def test_shut_down_after_a_signal(number):
    script = STARTED_AND_KILLED.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(process.stdout.readline())
    os.kill(process.pid, number)
    process.wait(timeout=30)
    process.stdout.close()
    assert not alive(pid)


def test_a_host_that_dies_shows_its_log(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('no such thing')")
    (tmp_path / "comfy").mkdir()
    began = time.monotonic()
    with pytest.raises(HostError, match="exit code 1:(.|\n)*no such thing"), Server(tmp_path):
        pass
    assert time.monotonic() - began < 20
