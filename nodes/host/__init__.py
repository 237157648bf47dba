"""The one door to ComfyUI's insides: what faces and runs may take of this package, by subject.

Of a subject that is a module they take what is public in it: `progress.tell_empty(...)`.
"""

from . import attention, checks, clip, conditioning, depth, guiders, inverted, law, lockstep, lora, masks, progress, vae
from .errors import errors_of
from .folders import add_model_folder
from .gradients.model import Differentiable, patcher_of
from .gradients.models import GuidedModels
from .gradients.tensors import gradients
from .guider import RunGuider, SampleCall, SteerCFG, guidance_of, plain_guider
from .pair import PairGuider
from .progress import log
from .run import Run
from .sampler import RunSampler
from .text import encoded, tokenized
from .text_columns import length_of

__all__ = [
    # A run and what a method does in it
    "Run",
    "RunSampler",
    # GUIDERs, and guiders as samplers call them
    "RunGuider",
    "SampleCall",
    "SteerCFG",
    "PairGuider",
    "guidance_of",
    "plain_guider",
    "guiders",
    "lockstep",
    # Noise laws and levels
    "law",
    # What fits a model
    "checks",
    "masks",
    "inverted",
    "add_model_folder",
    "errors_of",
    # Conditionings and texts
    "conditioning",
    "encoded",
    "length_of",
    "tokenized",
    # Attention
    "attention",
    # Gradients, the VAE, CLIP and depth networks
    "Differentiable",
    "GuidedModels",
    "patcher_of",
    "gradients",
    "lora",
    "vae",
    "clip",
    "depth",
    # What the log and the editor are told
    "log",
    "progress",
]
