"""Two clients of one running host queue prompts over all example workflows, and cancel some at random moments.

The workflows are those of `example_workflows/api`, with the few steps of `shortened`. Each comes in
two variants, of which the second has other noise seeds and one step more. Before anything else every one is run alone
in a host of its own; what it gives there is what it has to give under load, to the last bit.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image

from ..lab.comfy.server import Client, Event, HostError, Server
from ..lab.demo.runner import SHORT, TRAINING, load_workflow, workflow_names
from ..lab.demo.runner import shortened as with_few_steps
from ..lab.freeze import digest as picture_digest
from ..lab.world.inputs import write_inputs
from ..lab.world.metrics import markdown_table

VARIANTS, PROMPTS, ROUND, WAITING, SEED = 2, 100, 20, 3, 0
MOMENTS = {"waiting": 7, "a node beginning": 5, "inside a node": 13}
"""How many prompts are cancelled when; a node is inside when it has told of progress."""
NAMES = [name for name in workflow_names() if name not in TRAINING]
LATER = 0.3  # seconds: a cancellation comes up to so long after the event that it waits for
PACKS = {"steer-load-probe": Path(__file__).parent / "load_probe"}
Key = tuple[str, int]
Found = Counter[tuple[str, str]]
"""What a prompt leaves, as (node, digest)."""


class Alone(NamedTuple):
    """What a prompt gives when nothing else runs, and what the host told of it meanwhile."""

    found: Found
    events: list[Event]


@dataclass
class Job:
    """A prompt to queue, and what became of it."""

    number: int
    key: Key
    moment: str | None
    """When to cancel it, one of MOMENTS."""
    after: int
    """How many events of its own (of its client's, when it is to be waiting) come before that."""
    later: float
    prompt_id: str = ""
    cancelled: bool = False
    seen: Counter = field(default_factory=Counter)
    """Its events, by whether they are a node's beginning or inside one."""
    end: str = ""
    found: Found = field(default_factory=Counter)
    reused: bool = False
    """Whether the host had all of its samples from the prompt before."""

    @property
    def prompt(self) -> dict:
        return shortened(self.key, f"load/{self.number:03}")

    def is_due(self) -> bool:
        return self.moment is not None and not self.cancelled and self.seen[self.moment] > self.after


def shortened(key: Key, folder: str) -> dict:
    """The variant of a workflow, saving into this folder under the names of its nodes."""
    name, variant = key
    prompt = with_few_steps(load_workflow(name))
    for node, entry in prompt.items():
        inputs = entry["inputs"]
        numbers = {each for each, value in inputs.items() if isinstance(value, int)}  # not a wire of that name
        for each in {"steps", "seed", "noise_seed"} & numbers:
            inputs[each] += variant
        if "filename_prefix" in inputs:
            inputs["filename_prefix"] = f"{folder}/node{node}"
        if entry["class_type"] == "SteerLoadInversion":
            inputs["file"] = f"inversion{variant}.safetensors"
    return prompt


def left(server: Server, folder: str) -> Found:
    """What lies in a folder of the host's output: pictures by their pixels, other files by their bytes."""
    files = sorted((server.folder / "output" / folder).glob("*"))
    return Counter((path.name.split("_")[0].removeprefix("node"), digest(path)) for path in files)


def digest(path: Path) -> str:
    if path.suffix != ".png":
        return sha256(path.read_bytes()).hexdigest()
    with Image.open(path) as picture:
        return picture_digest(picture)


def listed(server: Server, outputs: dict) -> Found:
    """The same of what the host's history lists for a prompt, the pictures fetched over its API."""
    found = Counter((node, picture_digest(picture)) for node, picture in server.images(outputs))
    for node in outputs:
        for file in outputs[node].get("files", []):
            found[node, digest(server.folder / "output" / file["subfolder"] / file["filename"])] += 1
    return found


def run_alone(server: Server, key: Key, folder: str) -> Alone:
    events = []
    outputs = server.run(shortened(key, folder), lambda *event: events.append(Event("", *event)), timeout=1800)
    found = listed(server, outputs)
    if found != left(server, folder):
        raise ValueError(f"{key} alone lists {found} and leaves {left(server, folder)}")
    return Alone(found, events)


def run_all_alone() -> tuple[dict[Key, Alone], dict[str, bytes]]:
    """Each prompt once in a host of its own; and the inversions that it saved, by the names to load them under."""
    alone, inversions = {}, {}
    with Server() as server:
        write_inputs(server.input_folder)
        # the host keeps what two prompts in a row share: one workflow's variants are apart
        for variant, name in product(range(VARIANTS), NAMES):
            folder = f"alone/{name}{variant}"
            alone[name, variant] = run_alone(server, (name, variant), folder)
            for path in (server.folder / "output" / folder).glob("*.safetensors"):
                inversions[f"inversion{variant}.safetensors"] = path.read_bytes()
            write_files(server, inversions)
    return alone, inversions


def write_files(server: Server, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (server.input_folder / name).write_bytes(content)


def deck(alone: dict[Key, Alone]) -> list[Job]:
    """The prompts in the order in which the two clients take turns at queueing them: each at least once."""
    rng = random.Random(SEED)
    chosen = [*alone, *rng.choices(list(alone), k=PROMPTS - len(alone))]
    moments = [moment for moment, count in MOMENTS.items() for _ in range(count)]
    moments += [None] * (PROMPTS - len(moments))
    rng.shuffle(chosen)
    rng.shuffle(moments)
    return [
        Job(number, key, moment, rng.randrange(most_events(moment, alone[key])), rng.uniform(0.0, LATER))
        for number, (key, moment) in enumerate(zip(chosen, moments, strict=True))
    ]


def most_events(moment: str | None, alone: Alone) -> int:
    """How many events to wait for at the most: as many as the prompt had alone, or may go by while it waits."""
    return Counter(map(kind, alone.events)).get(moment, 40)


def interrupted(number: int, key: Key, alone: dict[Key, Alone]) -> Job:
    rng = random.Random(number)
    after = rng.randrange(most_events("inside a node", alone[key]))
    return Job(number, key, "inside a node", after, rng.uniform(0.0, 0.1))


def kind(event: Event) -> str:
    return "inside a node" if event.fraction else "a node beginning"


class Queuing:
    """One client at work: some of its prompts wait in the host's queue while one of them, or of another's, runs."""

    def __init__(self, client: Client, sample: Callable[[], None]):
        """`sample` is called whenever one of its prompts has ended."""
        self.client, self.server, self.sample = client, client.server, sample
        self.open: dict[str, Job] = {}
        self.strangers = 0
        """How often it was told of a prompt that it did not queue, or that had been taken out."""

    def run(self, jobs: list[Job]) -> None:
        """All of these to their ends."""
        to_come = list(reversed(jobs))
        self._fill(to_come)
        for event in self.client.events(timeout=1800):
            job = self.open.get(event.prompt_id)
            if job is None:
                self.strangers += 1
            elif event.node is None:
                self._end(job)
            else:
                job.seen[kind(event)] += 1
            self._cancel()
            self._fill(to_come)
            if not self.open:
                return

    def _fill(self, to_come: list[Job]) -> None:
        while to_come and len(self.open) < WAITING:
            job = to_come.pop()
            job.prompt_id = self.client.queue(job.prompt)
            self.open[job.prompt_id] = job

    def _cancel(self) -> None:
        for job in list(self.open.values()):
            job.seen["waiting"] += 1
            if job.is_due():
                time.sleep(job.later)
                job.cancelled = True
                if self.server.cancel(job.prompt_id):
                    job.end = "taken out of the queue"
                    del self.open[job.prompt_id]

    def _end(self, job: Job) -> None:
        del self.open[job.prompt_id]
        self.sample()
        try:
            job.found, job.end = listed(self.server, self.server.outputs(job.prompt_id)), "finished"
        except HostError as error:
            job.end = "interrupted" if error.exception_type == "execution_interrupted" else f"failed: {error}"
        messages = dict(self.server.get_json(f"/history/{job.prompt_id}")[job.prompt_id]["status"]["messages"])
        samplers = {node for node, entry in job.prompt.items() if "latent_image" in entry["inputs"]}
        job.reused = samplers <= set(messages["execution_cached"]["nodes"])


class Loaded(NamedTuple):
    """What came of it all."""

    jobs: list[Job]
    afterwards: list[Job]
    """Each workflow interrupted once more, while the host looks for interrupts between calls only."""
    left: dict[int, Found]
    """By job number what lies in its folder."""
    strangers: int
    most: float
    """MiB resident at the most when a prompt had just ended, of those after the first ROUND."""
    probes: dict[str, dict]
    """What the host's memory holds while nothing runs, by what has been done."""
    again: list[tuple[Key, Found]]
    """What prompts gave that were run alone in the same host, before and after the others."""
    queue: dict


def load(alone: dict[Key, Alone], inversions: dict[str, bytes]) -> Loaded:
    jobs, resident, probes = deck(alone), [], {}
    afterwards = [interrupted(PROMPTS + number, (name, 0), alone) for number, name in enumerate(NAMES)]
    # the threads outermost: without the host they end
    with ThreadPoolExecutor(2) as threads, Server(packs=PACKS) as server, server.client() as a, server.client() as b:
        write_inputs(server.input_folder)
        write_files(server, inversions)
        process = psutil.Process(server.process.pid)
        clients = [Queuing(client, lambda: resident.append(_mib(process))) for client in (a, b)]

        def probe(what: str, path: str = "") -> None:
            probes[what] = server.get_json(f"/steer_load_probe{path}")

        again = rerun(server, alone, "before")
        probe(WARM)
        for start in range(0, PROMPTS, ROUND):
            turns = jobs[start : start + ROUND]
            list(threads.map(Queuing.run, clients, (turns[0::2], turns[1::2])))
            probe(f"{start + len(turns)}")
        most = max(resident[ROUND:])
        server.get_json("/steer_load_probe/calls_only")
        clients[0].run(afterwards)
        again += rerun(server, alone, "after")
        queue = server.get_json("/queue")
        probe(END, "/give_back")
        lying = {job.number: left(server, f"load/{job.number:03}") for job in jobs + afterwards}
    strangers = sum(client.strangers for client in clients)
    return Loaded(jobs, afterwards, lying, strangers, most, probes, again, queue)


WARM, END = "each workflow once", "in the end"


def rerun(server: Server, alone: dict[Key, Alone], folder: str) -> list[tuple[Key, Found]]:
    """The first variant of each workflow, alone."""
    return [
        (key, run_alone(server, key, f"{folder}/{number}").found) for number, key in enumerate(alone) if key[1] == 0
    ]


def _mib(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def run() -> str:
    alone, inversions = run_all_alone()
    return report(load(alone, inversions), alone)


def report(loaded: Loaded, alone: dict[Key, Alone]) -> str:
    return (
        f"# Load\n\n{PROMPTS} prompts over all {len(NAMES)} example workflows that do not train (shortened to "
        f"{SHORT['steps']} steps and the like, shapes checkpoint) in random order, by two clients of one host, each "
        f"with {WAITING} of its prompts in the queue at a time. Some are cancelled at a random moment: while they "
        f"wait, when one of their nodes begins, or inside a node, each up to {LATER} s later. Before that each "
        "workflow is "
        f"run once, alone.\n\n{markdown_table(ends(loaded.jobs))}\n{results(loaded, alone)}\n\n"
        f"{stops(loaded, loaded.jobs)}\n\nThen each workflow was interrupted inside a node once more, with the host's "
        "look for an interrupt at each of a model's layers switched off, which leaves it to look between calls: "
        f"{stops(loaded, loaded.afterwards)}\n\n"
        "Memory of the host when nothing runs, in MiB, after so many prompts. In the end the host's history has been "
        f"cleared, and the C allocator told to give back what it can.\n\n{markdown_table(memory(loaded))}\n"
        f"Resident right after a prompt, the first {ROUND} left out, at the most: {loaded.most:.0f} MiB."
    )


def ends(jobs: list[Job]) -> list[dict]:
    """How many ended how, by the moment of cancelling."""
    rows = []
    for moment in (None, *MOMENTS):
        found = Counter(job.end.split(":")[0] for job in jobs if job.moment == moment)
        known = {end: found.pop(end, 0) for end in ENDS}
        rows.append({"to be cancelled": moment or "never", **known, "otherwise": found.total()})
    return rows


ENDS = "finished", "taken out of the queue", "interrupted"


def results(loaded: Loaded, alone: dict[Key, Alone]) -> str:
    """Whether what was left is what it is when a prompt runs alone."""
    jobs = loaded.jobs + loaded.afterwards
    finished = [job for job in loaded.jobs if job.end == "finished"]
    right = [job for job in finished if job.found == loaded.left[job.number] == alone[job.key].found]
    saved = sum((loaded.left[job.number] for job in jobs if job.end != "finished"), Counter())
    odd = sum((loaded.left[job.number] - alone[job.key].found for job in jobs), Counter())
    waiting = sum(len(loaded.queue[name]) for name in ("queue_running", "queue_pending"))
    again = sum(found == alone[key].found for key, found in loaded.again)
    return (
        f"Of {len(finished)} that finished, {len(right)} gave every picture and file that the prompt gives alone in a "
        f"host of its own, equal to the last bit ({sum(job.reused for job in finished)} had their samples from the "
        f"host's cache). What cancelled prompts had saved before they were stopped: {saved.total()} files; other than "
        f"alone: {odd.total()}. Left in the queue: {waiting}. Messages about prompts of the other client: "
        f"{loaded.strangers}. Run alone in the same host, before and after: {again} of {len(loaded.again)} equal to "
        "the last bit."
    )


def stops(loaded: Loaded, jobs: list[Job]) -> str:
    """What was still done after an interrupt."""
    told = loaded.probes[END]["after_stop"]
    stopped = [told[job.prompt_id] for job in jobs if job.prompt_id in told]
    inside = sum(each["inside"] for each in stopped)
    begun = max(each["begun"] for each in stopped)
    seconds = sorted(each["seconds"] for each in stopped)
    return (
        f"{len(stopped)} prompts were told to stop while they ran, {inside} of them inside a call of a network (UNet, "
        f"VAE, text or vision tower, classifier). At most {begun} further calls were begun, and the prompts had ended "
        f"{1000 * seconds[len(seconds) // 2]:.0f} ms later (median; at most {1000 * seconds[-1]:.0f} ms)."
    )


def memory(loaded: Loaded) -> list[dict]:
    first = loaded.probes[f"{ROUND}"]["resident"]
    return [
        {
            "prompts": what,
            "resident": f"{probe['resident']:.0f}",
            f"over {ROUND}": f"{100 * (probe['resident'] / first - 1):+.2f}%",
            "in tensors": f"{probe['size of tensors']:.1f}",
            "tensors": probe["tensors"],
            "Python objects": probe["objects"],
        }
        for what, probe in loaded.probes.items()
    ]
