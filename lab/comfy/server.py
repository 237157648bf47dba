"""The real host as a subprocess: started on a free port with this checkout in it, talked to over its API.

Nothing of the user's installation is written: inputs, outputs, settings and the database live in a temporary
folder, and of the custom nodes only this checkout and the demo's loader for the shapes checkpoint are loaded.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import torch
import websocket
from PIL import Image

from ..models.hypernetwork.network import write_hypernetwork
from ..models.inpainting.checkpoint import write_checkpoint
from ..package import ROOT
from ..weights import WEIGHTS
from .find import find_host, gpu_there

CUSTOM_NODES = {"steer-diffusion-checkout": ROOT, "steer-shapes-loader": ROOT / "lab" / "models"}
COMPANION_FOLDERS = "text_encoders", "clip_vision", "classifiers", "loras", "controlnet", "geometry_estimation"
START_SECONDS = 180
FRONTEND = "STEER_FRONTEND"
"""Environment variable: the `static` folder of an unpacked comfyui-frontend-package, to use in place of the host's."""
Progress = Callable[[str, float], None]  # node id, fraction of that node done: 0.0 when it begins


class HostError(RuntimeError):
    """The host refused or failed a prompt. `node_id` and the rest are None where the host named no node."""

    def __init__(
        self,
        message: str,
        *,
        node_id=None,
        node_type=None,
        exception_type=None,
        exception_message=None,
        node_errors=None,
    ):
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.exception_message = exception_message
        self.node_errors = node_errors or {}


class Event(NamedTuple):
    """What the host says of a prompt that runs: how far a node is, 0.0 when it begins; with no node, that it ended."""

    prompt_id: str
    node: str | None
    fraction: float


class Client:
    """A client of a running host with a name and channel of its own, as a context manager; for many prompts at a time.

    Its methods are for one thread; several clients of a host may each have theirs.
    """

    def __init__(self, server: "Server"):
        self.server, self.id = server, uuid.uuid4().hex

    def __enter__(self) -> "Client":
        url = f"ws://127.0.0.1:{self.server.port}/ws?clientId={self.id}"
        self._channel = websocket.create_connection(url, timeout=10)
        self._channel.settimeout(1)
        return self

    def __exit__(self, *exception) -> None:
        self._channel.close()

    def queue(self, prompt: dict) -> str:
        """As `Server.queue`; what becomes of the prompt is told to this client."""
        return self.server.queue(prompt, self.id)

    def events(self, timeout: float) -> Iterator[Event]:
        """What the host tells this client, as it comes. HostError when the host is lost or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                text = self._channel.recv()
            except websocket.WebSocketTimeoutException:
                self.server.check_alive()
                continue
            except (websocket.WebSocketException, OSError) as error:
                raise HostError(f"lost the host ({error}):\n{self.server.log_tail()}") from error
            event = json.loads(text) if text and isinstance(text, str) else {"type": "a preview picture"}
            data = event.get("data", {})
            if event["type"] in ("executing", "progress") and "prompt_id" in data:
                fraction = data["value"] / data["max"] if event["type"] == "progress" else 0.0
                yield Event(data["prompt_id"], data["node"], fraction)
        raise HostError(f"it did not end within {timeout:g} s:\n{self.server.log_tail()}")

    def wait(self, prompt_id: str, progress: Progress | None = None, timeout: float = 600) -> None:
        """Until this prompt has ended, in whatever way; what is told of others is dropped.

        HostError when `timeout` seconds pass; the prompt is cancelled then.
        """
        try:
            for event in self.events(timeout):
                if event.prompt_id == prompt_id and event.node is None:
                    return
                if event.prompt_id == prompt_id and progress:
                    progress(event.node, event.fraction)
        except HostError:
            if self.server.process.poll() is None:
                self.server.cancel(prompt_id)
            raise


class Server:
    """A running host, as a context manager; it is shut down on every way out, signals included."""

    def __init__(self, host: Path | None = None, checkpoint: Path | None = None, packs: dict[str, Path] | None = None):
        """`host`: the ComfyUI folder, default the one found here; `checkpoint`: a file to offer besides the shapes'.

        `packs`: folders of further custom nodes, by the name to load each under.
        """
        self.host = host or find_host()
        if self.host is None:
            raise ValueError("no ComfyUI found: set COMFYUI_PATH to a checkout, or clone it to ~/comfy/ComfyUI")
        self.model_folders = [WEIGHTS] + ([checkpoint.resolve().parent] if checkpoint else [])
        self.packs = CUSTOM_NODES | (packs or {})

    def __enter__(self) -> "Server":
        with ExitStack() as stack:
            stack.enter_context(_signals_raise())
            self.folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="steer-host-", ignore_cleanup_errors=True))
            )
            self.input_folder = self.folder / "input"
            self._prepare()
            self._start()
            stack.callback(self._stop)
            self._wait_until_ready()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._cleanup.close()

    def object_info(self) -> dict:
        """What the host says of every node it has: the /object_info answer."""
        return self.get_json("/object_info")

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queue a prompt in API form; its prompt id. HostError with `node_errors` when the host refuses any of it."""
        body = {"prompt": prompt} | ({"client_id": client_id} if client_id else {})
        try:
            answer = json.loads(self._post("/prompt", body))
        except urllib.error.HTTPError as error:
            raise _refusal(json.loads(error.read()), prompt) from None
        if answer.get("node_errors"):  # it runs the outputs that are valid, and leaves out the others
            self.cancel(answer["prompt_id"])
            raise _refusal({"error": PARTLY, **answer}, prompt)
        return answer["prompt_id"]

    def client(self) -> Client:
        """A client of this host, not yet connected."""
        return Client(self)

    def run(self, prompt: dict, progress: Progress | None = None, timeout: float = 600) -> dict:
        """Run a prompt to its end; the outputs by node id, as the host's history has them.

        HostError when the host refuses it, a node fails, it is interrupted, or `timeout` seconds pass.
        """
        with self.client() as client:
            prompt_id = client.queue(prompt)
            client.wait(prompt_id, progress, timeout)
        return self.outputs(prompt_id)

    def outputs(self, prompt_id: str) -> dict:
        """The outputs by node id of a prompt that has ended. HostError when it ended in an error."""
        entry = self.get_json(f"/history/{prompt_id}")[prompt_id]
        for kind, data in entry["status"]["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                raise _failure(kind, data)
        return entry["outputs"]

    def interrupt(self) -> None:
        """Ask the host to stop what it is running now."""
        self._post("/interrupt", {})

    def cancel(self, prompt_id: str) -> bool:
        """Take a prompt out of the queue, or ask the host to stop it where it runs; whether it was still waiting.

        The host forgets a prompt that is taken out and tells nobody.
        """
        self._post("/queue", {"delete": [prompt_id]})
        if any(entry[1] == prompt_id for entry in self.get_json("/queue")["queue_running"]):
            self._post("/interrupt", {"prompt_id": prompt_id})
            return False
        return not self.get_json(f"/history/{prompt_id}")

    def image(self, filename: str, subfolder: str = "", type: str = "output") -> Image.Image:
        """A picture that the host saved, addressed as the outputs do."""
        query = urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return Image.open(BytesIO(self._get(f"/view?{query}")))

    def images(self, outputs: dict) -> list[tuple[str, Image.Image]]:
        """(node id, picture) for every picture saved in these outputs, and not only shown in a node."""
        return [
            (node, self.image(**where))
            for node in outputs
            for where in outputs[node].get("images", [])
            if where["type"] == "output"
        ]

    def log(self) -> str:
        """What the host has printed so far."""
        return (self.folder / "host.log").read_text(errors="replace")

    def log_tail(self) -> str:
        """The last lines of `log`."""
        return "\n".join(self.log().splitlines()[-30:])

    def check_alive(self) -> None:
        """HostError, with the end of its log, when the host has ended."""
        if self.process.poll() is not None:
            raise HostError(f"the host ended with exit code {self.process.returncode}:\n{self.log_tail()}")

    def get_json(self, path: str) -> dict:
        """What the host answers under this path of its API."""
        return json.loads(self._get(path))

    @property
    def url(self) -> str:
        """Where the host's editor and API are."""
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        for name in ("input", "output", "temp", "user", "custom_nodes", "models"):
            (self.folder / name).mkdir()
        write_checkpoint(self.folder / "models")
        write_hypernetwork(self.folder / "models")
        for name, source in self.packs.items():
            _link(source, self.folder / "custom_nodes" / name)
        paths = {
            "custom_nodes": str(self.folder / "custom_nodes"),
            "checkpoints": "\n".join(str(folder) for folder in [*self.model_folders, self.folder / "models"]),
            "hypernetworks": str(self.folder / "models"),
            **dict.fromkeys(COMPANION_FOLDERS, str(WEIGHTS)),
        }
        (self.folder / "paths.yaml").write_text(json.dumps({"steer": paths}))  # JSON is YAML

    def _start(self) -> None:
        self.port = _free_port()
        with open(self.folder / "host.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *self._arguments()],
                cwd=self.host,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _arguments(self) -> list[str]:
        folders = [f"--{name}-directory={self.folder / name}" for name in ("input", "output", "temp", "user")]
        device = [] if gpu_there(torch) else ["--cpu"]
        frontend = [f"--front-end-root={os.environ[FRONTEND]}"] if FRONTEND in os.environ else []
        return [
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            *device,
            *frontend,
            *folders,
            "--database-url",
            f"sqlite:///{self.folder / 'comfyui.db'}",
            "--extra-model-paths-config",
            str(self.folder / "paths.yaml"),
            "--preview-method",
            "auto",
            "--disable-auto-launch",
            "--disable-api-nodes",
            "--disable-all-custom-nodes",
            "--whitelist-custom-nodes",
            *self.packs,
        ]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.get_json("/system_stats")
                return
            except OSError:
                time.sleep(0.1)
        raise HostError(f"the host did not answer within {START_SECONDS} s:\n{self.log_tail()}")

    def _stop(self) -> None:
        for stop in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            _signal_group(self.process, stop)
            try:
                self.process.wait(timeout=10)
                return
            except subprocess.TimeoutExpired:
                continue

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def _post(self, path: str, body: dict) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


@contextmanager
def _signals_raise():
    """Let SIGTERM and SIGHUP leave through the `with` blocks, as Ctrl-C does, so that the child is ended too."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {name: signal.signal(getattr(signal, name), _leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _leave(number, frame):
    raise SystemExit(128 + number)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except AttributeError:  # Windows has no process groups to signal
        process.terminate()
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", ".venv", "output", "__pycache__"))


PARTLY = {"type": "prompt_outputs_failed_validation", "message": "Some of the prompt's outputs are not valid"}


def _refusal(answer: dict, prompt: dict) -> HostError:
    """The error for a prompt that the host did not accept."""
    node_errors = answer.get("node_errors") or {}
    lines = [answer["error"]["message"]]
    for node, found in node_errors.items():
        kind = prompt[node]["class_type"]
        lines += [f"node {node} ({kind}): {error['message']}: {error['details']}" for error in found["errors"]]
    first = next(iter(node_errors), None)
    return HostError(
        "\n".join(lines),
        node_id=first,
        node_type=prompt[first]["class_type"] if first else None,
        exception_type=answer["error"]["type"],
        exception_message=answer["error"]["message"],
        node_errors=node_errors,
    )


def _failure(kind: str, data: dict) -> HostError:
    """The error for a prompt that ended in a node."""
    what = data.get("exception_message", "interrupted")
    return HostError(
        f"node {data['node_id']} ({data['node_type']}): {what.strip()}",
        node_id=data["node_id"],
        node_type=data["node_type"],
        exception_type=data.get("exception_type", kind),
        exception_message=what,
    )
