"""An inversion saved, the server started anew, the file loaded and edited: the same picture to the last bit."""

import shutil

import numpy as np
import pytest
from steer.lab.comfy.server import Server
from steer.lab.demo.runner import load_workflow
from steer.lab.world.inputs import write_inputs


def node_of(prompt, kind):
    return next(node for node, entry in prompt.items() if entry["class_type"] == kind)


def direct(saving, using):
    """The saving workflow with the editing one's guider and prompt grafted on: edited without the file."""
    saving = dict(saving)
    inversion, checkpoint = node_of(saving, "SteerDDIMInversion"), node_of(saving, "CheckpointLoaderSimple")
    sigmas = saving[inversion]["inputs"]["sigmas"]
    loaded, ours = node_of(using, "SteerLoadInversion"), {0: 2, 1: 0, 2: 1}
    for node, entry in using.items():
        if entry["class_type"] in ("CheckpointLoaderSimple", "SteerLoadInversion"):
            continue
        inputs = {}
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == loaded:
                value = sigmas if value[1] == 3 else [inversion, ours[value[1]]]
            elif isinstance(value, list):
                of_checkpoint = using[value[0]]["class_type"] == "CheckpointLoaderSimple"
                value = [checkpoint if of_checkpoint else f"edit{value[0]}", value[1]]
            inputs[name] = value
        saving[f"edit{node}"] = {**entry, "inputs": inputs}
    return saving


@pytest.mark.slow
def test_save_restart_load_edit():
    saving, using = load_workflow("inversion_file_save"), load_workflow("inversion_file_use")
    picture = f"edit{node_of(using, 'SaveImage')}"
    with Server() as first:
        write_inputs(first.input_folder)
        outputs = first.run(direct(saving, using))
        expected = dict(first.images(outputs))[picture]
        saved = outputs[node_of(saving, "SteerSaveInversion")]["files"][0]
        file = first.folder / "output" / saved["subfolder"] / saved["filename"]
        with Server() as second:
            (second.input_folder / "kept").mkdir()
            shutil.copy(file, second.input_folder / "kept" / file.name)
            using[node_of(using, "SteerLoadInversion")]["inputs"]["file"] = f"kept/{file.name}"
            [(_, loaded)] = second.images(second.run(using))
    assert np.asarray(expected).std() > 10
    assert np.array_equal(np.asarray(expected), np.asarray(loaded))
