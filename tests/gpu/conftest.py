"""The gpu tier: the real ComfyUI on the GPU, models of real size; with STEER_DEVICE=cpu small ones on the CPU."""

import pytest
from steer.tests.host.conftest import inference_mode, shapes, temporary_folder  # noqa: F401  the host is loaded by it

import comfy.model_management as management  # isort: skip


@pytest.fixture(autouse=True, scope="module")
def memory():
    """Each file has the GPU's memory for itself."""
    yield
    management.unload_all_models()
    management.soft_empty_cache()
