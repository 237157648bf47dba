"""Whatever comes over its wires, a node gives a result that is right in itself, or a ValueError before the model runs.

The same examples each time: some 600, with STEER_FUZZ=1 (as in `make test-all`) 2,000. For ten times as many and
others: `STEER_FUZZ=10 pytest tests/host/test_fuzz.py --hypothesis-seed=1`.
"""

import os
import re
import traceback
from collections import Counter
from random import Random

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import folder_paths
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from steer.files.classifier_file import read_classifier
from steer.lab.comfy.server import HostError
from steer.lab.demo.runner import TRAINING, lacking, load_workflow, shortened, workflow_names
from steer.lab.models import stock
from steer.lab.package import ROOT
from steer.lab.weights import CLASSIFIER
from steer.nodes.classifier import FOLDER
from steer.nodes.inversion_file import SteerSaveInversion
from steer.tests.fuzz_inputs import (
    BAD_NUMBERS,
    BAD_TEXTS,
    NODES,
    frozen,
    in_place_of,
    inputs,
    unchanged,
    usual_inputs,
    world_of,
)
from steer.tests.matrices import collected

FACTOR = float(os.environ.get("STEER_FUZZ", "0.3"))
LEAST = 2000 * min(FACTOR, 1)
EXAMPLES = 60
"""For each node that runs the model a few times; those that never do get more, those that need gradients fewer."""
OTHERS = {
    **dict.fromkeys(("SteerSDEditSigmas", "SteerSaveInversion", "SteerLoadInversion", "SteerAttentionHeatmap",
                     "SteerClassifierLoader", "SteerStitch", "SteerPoissonBlend", "SteerPadFrames", "SteerPadImage",
                     "SteerFrameMask"), 160),
    **dict.fromkeys(("SteerDDIMInversion", "SteerNullText", "SteerCLIPTextLoss", "SteerCLIPImageLoss",
                     "SteerClassifierLoss", "SteerDiffEditMask", "SteerReconstructLatent", "SteerReconstructDecoder",
                     "SteerLocalBlend", "SteerFitLoRA"),
                    24),
}  # fmt: skip
FEWEST = {"steps": 1, "samples": 1, "resamples": 1, "inner_steps": 1, "refine": 0, "cutouts": 1, "iterations": 1}
OURS = [str(ROOT / folder) + os.sep for folder in ("nodes", "samplers", "attention")]
LATE = re.compile(
    "the gradient holds NaN|the loss is|not one that the inversion recorded|the recording holds nothing of|"
    "never used its positive|the model's answer at|the sampler came to"
)
"""What can only be found out while the model runs."""

OUTCOMES = "result", "ValueError", "host's"
CHECKS = collected("CHECK")
tally = Counter()

EMPTY_PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 255}}
SAVED = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "fuzz"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The host's output and input folders and a folder of classifiers, all empty but for the shapes' classifier."""
    kept = folder_paths.get_output_directory(), folder_paths.get_input_directory()
    output, source, classifiers = (tmp_path_factory.mktemp(name) for name in ("output", "input", "classifiers"))
    folder_paths.set_output_directory(str(output))
    folder_paths.set_input_directory(str(source))
    (classifiers / "shapes_classifier.safetensors").write_bytes(CLASSIFIER.read_bytes())
    (classifiers / "bad.safetensors").write_bytes(b"bad")
    folder_paths.add_model_folder_path(FOLDER, str(classifiers), is_default=True)
    yield output, source
    folder_paths.set_output_directory(kept[0])
    folder_paths.set_input_directory(kept[1])


@pytest.fixture(scope="module")
def world(shapes, folders):
    with torch.inference_mode():
        world = world_of(shapes, stock.load_clip_pair(), read_classifier(CLASSIFIER))
        SteerSaveInversion.execute(world.usual["STEER_INVERSION"]["inversion"], "kept/inversion")
        return world


def number(of_all: int) -> int:
    """How many to draw, of so many at STEER_FUZZ=1."""
    return max(1, round(FACTOR * of_all))


def came_through_steer(error) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.startswith(folder) for frame in frames for folder in OURS)


def listed(folders):
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def one_example(node_id, values, run, world, folders):
    """Counts what came of it; fails unless that is a ValueError as it should be or a result that is right."""
    check, _ = CHECKS[node_id]
    before, files = frozen((values, run)), listed(folders)
    world.calls.clear()
    try:
        check(world, values, run, NODES[node_id].execute(**values))
        tally[node_id, "result"] += 1
    except ValueError as error:
        if came_through_steer(error):
            assert re.match(r"Steer\w+: ", str(error)), "the message does not begin with a node"
            assert not world.calls or LATE.search(str(error)), "the model was called before"
            tally[node_id, "ValueError"] += 1
        else:
            tally[node_id, "host's"] += 1
    except AssertionError:
        raise
    except Exception as error:
        if came_through_steer(error):
            raise
        tally[node_id, "host's"] += 1  # the host fails on it before anything of Steer is asked
    assert unchanged(before, (values, run)), "an input was changed"
    assert listed(folders) == files, "a file was left behind"


def weights_of(model) -> dict:
    """All of them and the noise law's, once the host has loaded it again: until then a clone's law may be in it."""
    comfy.model_management.load_models_gpu([model])
    return dict(model.model.state_dict())


@pytest.mark.parametrize("node_id", CHECKS)
def test_a_result_or_a_value_error(node_id, world, folders):
    weights = {
        name: {key: weight.clone() for key, weight in weights_of(model).items()}
        for name, model in (world.usual["MODEL"] | world.odd["MODEL"]).items()
    }

    @settings(
        max_examples=number(OTHERS.get(node_id, EXAMPLES)), derandomize=FACTOR <= 1, deadline=None,
        database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )  # fmt: skip
    @given(inputs(node_id, CHECKS[node_id][1], world))
    def any_input(drawn):
        values, run = ({name: each.value for name, each in part.items()} for part in drawn)
        one_example(node_id, values, run, world, folders)

    any_input()
    for name, model in (world.usual["MODEL"] | world.odd["MODEL"]).items():
        assert not model.patches and unchanged(weights[name], weights_of(model))


@pytest.mark.parametrize("node_id", CHECKS)
def test_what_does_not_belong_on_an_input_is_named(node_id, world, folders):
    """A literal in place of a wire, or a wire of another type: a ValueError with the node and the input, no call."""
    files, items = listed(folders), NODES[node_id].GET_SCHEMA().inputs

    @settings(
        max_examples=number(2), derandomize=FACTOR <= 1, deadline=None, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(usual_inputs(node_id, world))
    def each_for_each(drawn):
        values = {name: each.value for name, each in drawn.items()}
        for item in items:
            for wrong in in_place_of(item, world):
                with pytest.raises(ValueError) as caught:
                    NODES[node_id].execute(**{**values, item.id: wrong})
                message = str(caught.value)
                assert re.match(rf"{node_id}: .*\b{item.id}\b", message, re.DOTALL), (item.id, type(wrong))
                assert len(message) < 1000

    world.calls.clear()
    each_for_each()
    assert not world.calls and listed(folders) == files


JSON = (1, 0, 2.5, True, "x", "", None, {}, {"samples": 1}, {"__value__": [1, 2]}, {"__value__": [[1, {}]]})
WIDGETS = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")


def usual(item):
    """What a widget holds that the host lets through: its default, or its name where that is empty and may not be."""
    if item.io_type == "COMBO":
        return item.options[0]
    if item.io_type == "STRING":
        return item.default or ("" if item.id == "equalizer" else item.id)
    return item.default or 0


def with_literals(node_id, literal):
    """(a prompt whose node gets the literal on each wire and else its defaults, the first of these wires)."""
    node = NODES[node_id]
    items = [item for item in node.GET_SCHEMA().inputs if not item.optional]
    wires = [item.id for item in items if item.io_type not in WIDGETS]
    typed = [item for item in items if item.io_type in WIDGETS]
    inputs = {item.id: usual(item) for item in typed if wires}
    graph = {"1": {"class_type": node_id, "inputs": inputs | dict.fromkeys(wires, literal)}}
    if node.RETURN_TYPES:  # else it ends the prompt itself
        graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    return graph, *wires[:1]


@pytest.mark.parametrize("literal", JSON, ids=repr)
def test_a_literal_in_place_of_a_wire_through_the_server(server, literal):
    """The host lets it through, and the node names it."""
    for node_id in NODES:
        graph, *wires = with_literals(node_id, literal)
        if not wires:
            continue
        with pytest.raises(HostError) as caught:
            server.run(graph)
        error = caught.value
        assert (error.node_id, error.exception_type) == ("1", "ValueError"), f"{node_id}: {str(error)[:500]}"
        assert error.exception_message.startswith(f"{node_id}: {wires[0]} is "), error.exception_message


def test_no_node_is_left_out():
    assert CHECKS.keys() == NODES.keys()


def test_how_many_there_were(request):
    """After the others, of this file and process: enough, and enough of either outcome."""
    if not all(any(tally[node_id, what] for what in OUTCOMES) for node_id in CHECKS):
        pytest.skip("not all nodes were tried in this run")
    counts = {what: sum(tally[node_id, what] for node_id in CHECKS) for what in OUTCOMES}
    report = request.config.pluginmanager.get_plugin("terminalreporter")
    report.write_line(f"\nfuzz: {sum(counts.values())} inputs, {counts}")
    assert sum(counts.values()) >= LEAST
    assert min(counts["result"], counts["ValueError"]) > sum(counts.values()) / 4
    assert counts["host's"] < sum(counts.values()) / 50
    for node_id in CHECKS:
        assert tally[node_id, "result"] and tally[node_id, "ValueError"], node_id


def literals(workflow):
    """(node id, schema input) of each number or text typed into a node of Steer."""
    for node_id, node in workflow.items():
        for item in NODES[node["class_type"]].GET_SCHEMA().inputs if node["class_type"] in NODES else ():
            if item.io_type in ("INT", "FLOAT", "STRING", "COMBO") and item.id in node["inputs"]:
                yield node_id, item


def test_through_the_server(server):
    """The host may refuse it by the node's schema; else as above, and it is ready for the next."""
    choice, counts = Random(0), Counter()
    there = server.object_info()
    names = [name for name in workflow_names() if name not in TRAINING and not lacking(load_workflow(name), there)]
    numbers = [value for value in BAD_NUMBERS if type(value) in (int, float, bool) and abs(value) < 1e100]
    server.run(shortened(load_workflow("inversion_file_save"), FEWEST))  # which another one loads
    for name in choice.choices(names, k=number(80)):
        workflow = shortened(load_workflow(name), FEWEST)
        node_id, item = choice.choice(list(literals(workflow)))
        value = choice.choice(numbers if item.io_type in ("INT", "FLOAT") else BAD_TEXTS)
        workflow[node_id]["inputs"][item.id] = value
        try:
            server.run(workflow)
            counts["result"] += 1
        except HostError as error:
            counts["schema" if node_id in error.node_errors else error.exception_type] += 1
            clear = node_id in error.node_errors or re.match(r"Steer\w+: ", error.exception_message or "")
            assert clear, f"{name}, {item.id} of {node_id} is {value!r}: {str(error)[:500]}"
    assert server.run({"1": EMPTY_PICTURE, "2": SAVED})
    kinds = {"schema", "ValueError", "result"}
    assert counts["result"] and counts.keys() <= kinds
    assert counts.keys() == kinds or FACTOR < 1  # few draws need not have one of each
