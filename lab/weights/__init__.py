"""The weights of the models, by what they are. `weights.toml` has the size and digest of each file."""

from hashlib import sha256
from pathlib import Path

WEIGHTS = Path(__file__).parent
TABLE = WEIGHTS / "weights.toml"
CHECKPOINT = WEIGHTS / "shapes.safetensors"
FLUX = WEIGHTS / "shapes_flux.safetensors"
WAN = WEIGHTS / "shapes_wan.safetensors"
CLIP_TEXT = WEIGHTS / "shapes_clip_text.safetensors"
CLIP_VISION = WEIGHTS / "shapes_clip_vision.safetensors"
CLASSIFIER = WEIGHTS / "shapes_classifier.safetensors"
LORA = WEIGHTS / "shapes_lora.safetensors"
HYPERNETWORK = WEIGHTS / "shapes_hypernetwork.safetensors"
CONTROLNET = WEIGHTS / "shapes_controlnet.safetensors"
T2I_ADAPTER = WEIGHTS / "shapes_t2i_adapter.safetensors"
DEPTH = WEIGHTS / "shapes_depth.safetensors"
INPAINTING_ADDITIONS = WEIGHTS / "shapes_inpainting_additions.safetensors"


def table() -> str:
    """What `weights.toml` says when it is true: of each file its size in bytes and its SHA-256."""
    return "\n".join(map(_entry, sorted(WEIGHTS.glob("*.safetensors"))))


def _entry(file: Path) -> str:
    data = file.read_bytes()
    return f'["{file.name}"]\nsize = {len(data)}\nsha256 = "{sha256(data).hexdigest()}"\n'
