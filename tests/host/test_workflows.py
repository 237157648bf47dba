"""Every example workflow through the real server's API."""

import numpy as np
import pytest
from steer.lab.demo.runner import SHORT, TRAINING, lacking, load_workflow, shortened, workflow_names


@pytest.mark.parametrize("numbers", [SHORT, pytest.param({}, marks=pytest.mark.slow)], ids=["short", "whole"])
@pytest.mark.parametrize("name", workflow_names())
def test_runs_and_leaves_pictures(server, name, numbers):
    prompt = shortened(load_workflow(name), numbers)
    if name in TRAINING and not numbers:
        pytest.skip("minutes of the host's own trainer, which make demo runs")
    if unknown := lacking(prompt, server.object_info()):
        pytest.skip(f"needs {', '.join(unknown)}")
    pictures = server.images(server.run(prompt, timeout=1800))
    assert {node for node, _ in pictures} == {node for node in prompt if prompt[node]["class_type"] == "SaveImage"}
    for _, picture in pictures:
        assert min(picture.size) >= 128
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("name", workflow_names())
def test_every_node_has_a_title_and_every_file_a_name_of_its_own(name):
    prompt = load_workflow(name)
    assert all(node["_meta"]["title"] for node in prompt.values())
    prefixes = [node["inputs"]["filename_prefix"] for node in prompt.values() if node["class_type"] == "SaveImage"]
    assert len(set(prefixes)) == len(prefixes) > 0
