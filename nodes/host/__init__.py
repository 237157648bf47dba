"""The one door to ComfyUI's insides: what faces and runs may take of this package, by subject.

Of a subject that is a module they take what is public in it: `progress.tell_empty(...)`.
"""

from . import clip, conditioning, depth, inverted, lockstep, lora, progress, vae
from .attention.edits import AttentionEdits, check_pairs
from .attention.marked import Mark, with_marked_edits
from .checks import check_every_call, check_given, free_ram, samples_of
from .conditioning import HALF, half_of
from .errors import errors_of
from .folders import add_model_folder
from .gradients.model import Differentiable, patcher_of
from .gradients.models import GuidedModels
from .gradients.tensors import gradients
from .guider import RunGuider, SampleCall, SteerCFG, guidance_of, plain_guider
from .guiders import Call, WrappedGuider, patches_guide
from .law import SCHEDULERS, host_sigmas, noise_law, sigma_at, strength_sigma, window_of
from .masks import fitted_mask, fitted_noise_mask
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
    "patches_guide",
    "Call",
    "WrappedGuider",
    "lockstep",
    # Noise laws and levels
    "SCHEDULERS",
    "host_sigmas",
    "noise_law",
    "sigma_at",
    "strength_sigma",
    "window_of",
    # What fits a model
    "check_every_call",
    "check_given",
    "free_ram",
    "samples_of",
    "fitted_mask",
    "fitted_noise_mask",
    "inverted",
    "add_model_folder",
    "errors_of",
    # Conditionings and texts
    "conditioning",
    "HALF",
    "half_of",
    "encoded",
    "length_of",
    "tokenized",
    # Attention
    "AttentionEdits",
    "check_pairs",
    "Mark",
    "with_marked_edits",
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
