"""The host tier: the real ComfyUI, loaded into this process."""

import pytest
import torch
from steer.lab.comfy.find import find_host, gpu_there, load_host

EXACT = ["--fp32-unet", "--fp32-vae", "--fp32-text-enc", "--deterministic", "--disable-dynamic-vram"]
"""A GPU computes in half precision and makes weights as layers run, unless told otherwise; so it is as a CPU is."""

if find_host():
    known = (find_host() / "comfy" / "cli_args.py").read_text()
    load_host(find_host(), [flag for flag in EXACT if f'"{flag}"' in known] if gpu_there(torch) else ())
    torch.backends.cudnn.allow_tf32 = False
    import comfy.model_management

    comfy.model_management.lora_compute_dtype = lambda device: torch.float32


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Where nodes put the pictures that they show: not into the host's own folder."""
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture(scope="session")
def shapes():
    """(model, clip, vae) of the shapes checkpoint, through the host's stock loader."""
    import torch
    from steer.lab.models import stock

    with torch.inference_mode():
        return stock.load()


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run in inference mode; so do these tests."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def dead_models_forgotten():
    """A model that outlives its patcher has the host collect all garbage at each load, for as long as it lists it."""
    import comfy.model_management as management

    yield
    management.current_loaded_models[:] = [each for each in management.current_loaded_models if not each.is_dead()]


@pytest.fixture
def guider(shapes):
    """The host's guider at cfg 3 on the shapes model, with a caption and an empty negative."""
    from steer.lab.comfy.runs import encode, host_guider

    model, clip, _ = shapes
    return host_guider(model, encode(clip, "a red circle on a blue background"), encode(clip, ""), 3.0)
