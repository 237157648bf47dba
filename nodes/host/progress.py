"""What the log and the host's editor are told while a node runs, and how the host shows latents."""

import logging
import sys
from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.utils
import latent_preview
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, tensor
from torch.nn.functional import interpolate

from ...samplers.masks import paints
from ..schema import PICTURES

PREVIEW = 512  # pixels that a preview has at most
log = logging.getLogger("steer")


def show_text(text: str) -> None:
    """Shows a line on the node that is running, in the editor.

    It begins with a node's id: by that `web/steer.js` knows it when the run ends, and takes it away.
    """
    instance, context = _editor(), get_executing_context()
    if instance is not None:
        instance.send_progress_text(text, context.node_id)


def show_output(node_id: str | None, output: Callable[[], dict]) -> None:
    """Shows a node's output in the editor after the node has ended. Without an editor that listens it is not made."""
    instance = _editor()
    if instance is not None and instance.client_id is not None and node_id is not None:
        message = {"node": node_id, "display_node": node_id, "output": output()}
        instance.send_sync("executed", {**message, "prompt_id": get_executing_context().prompt_id}, instance.client_id)


def running_node() -> str | None:
    """The id of the node that is running; None outside a server."""
    context = get_executing_context()
    return context.node_id if context else None


def _editor():
    """The server, while it runs a node; else None."""
    server = sys.modules.get("server")
    return getattr(server.PromptServer, "instance", None) if server and get_executing_context() else None


def latent_picture(latent_format, latents: Tensor, size: Sequence[int]) -> Tensor | None:
    """(pictures, *size, 3), 0 to 1: latents (model space) by the host's table of their colours; None without one.

    Of a large batch or of many frames these are the first `PICTURES`.
    """
    factors, bias = latent_format.latent_rgb_factors, getattr(latent_format, "latent_rgb_factors_bias", None)
    if factors is None:
        return None
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    values = (latents if reshape is None else reshape(latents)).float().cpu().movedim(1, -1)
    colours = values @ tensor(factors) + (0.0 if bias is None else tensor(bias))
    small = ((colours + 1.0) / 2.0).clamp(0.0, 1.0).flatten(0, -4)[:PICTURES].movedim(-1, 1)
    return interpolate(small, list(size), mode="bicubic").clamp(0.0, 1.0).movedim(1, -1)


def source_picture(model, samples: Tensor, size: Sequence[int]) -> Tensor | None:
    """The same of latents as they are on wires."""
    latent_format = model.get_model_object("latent_format")
    return latent_picture(latent_format, latent_format.process_in(samples), size)


def tell(node: str, text: str) -> None:
    """A warning in the log and, in the editor, on the node that is running."""
    log.warning("%s: %s", node, text)
    show_text(f"{node}: {text}")


def tell_empty(node: str, name: str, masks: Tensor, outcome: str) -> bool:
    """Whether all of a batch of masks (batch, ...) are empty; tells which are, and what comes of it."""
    text = empty_of(name, masks, outcome)
    if text:
        tell(node, text)
    return not any(map(paints, masks))


def empty_of(name: str, masks: Tensor, outcome: str) -> str:
    """Which of a batch of masks (batch, ...) are empty, and what comes of it; nothing where none is."""
    empty = [str(number) for number, mask in enumerate(masks, 1) if not paints(mask)]
    if len(empty) == len(masks):
        return f"the {name} is empty (0 everywhere): {outcome}"
    if not empty:
        return ""
    return f"{name} {', '.join(empty)} of {len(masks)} is empty (0 everywhere): there {outcome}"


bar = comfy.utils.ProgressBar
stop_if_interrupted = comfy.model_management.throw_exception_if_processing_interrupted


def previews(model, steps: int) -> dict:
    """What a guider's `sample` is given so that its steps are shown, in the editor and in the terminal."""
    callback = latent_preview.prepare_callback(model, steps)
    return {"callback": callback, "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED}


def picture_preview(picture: Tensor) -> tuple | None:
    """A picture (3, height, width), 0 to 1, as the bar takes it for a preview; None where previews are off."""
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    pixels = (picture.clamp(0, 1) * 255).round().byte().movedim(0, -1)
    return "JPEG", Image.fromarray(pixels.cpu().numpy()), PREVIEW
