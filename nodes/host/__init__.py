"""The one door to ComfyUI's insides: what faces and runs may take of this package, by subject."""

from .attention.edits import AttentionEdits
from .attention.marked import Mark, with_marked_edits
from .checks import check_every_call, check_given, free_ram, samples_of
from .clip import embedded, image_target, text_target
from .conditioning import (
    HALF,
    check_active,
    equal,
    half_of,
    has_area,
    negative_takes_over,
    paired,
    same,
    time_limits,
    windows,
)
from .errors import errors_of
from .gradients.model import Differentiable, gradient_options, patcher_of
from .gradients.models import GuidedModels, memory_advice
from .gradients.tensors import gradients
from .gradients.weights import own_weights
from .guider import (
    RunGuider,
    SampleCall,
    SteerCFG,
    guidance_of,
    patches_read_order,
    patches_read_predictions,
    plain_guider,
)
from .guiders import Call, WrappedGuider
from .inverted import InvertedNoise, check_inversion_fits, inversion_start, latent_format_of
from .law import SCHEDULERS, host_sigmas, noise_law, sigma_at, strength_sigma, window_of
from .lockstep import PairConds, TwoPromptGuider, guided_pair, in_lockstep
from .masks import fitted_mask, fitted_noise_mask
from .pair import PairGuider
from .progress import (
    empty_of,
    latent_picture,
    log,
    picture_preview,
    previews,
    progress_bar,
    running_node,
    show_output,
    show_progress_text,
    source_picture,
    stop_if_interrupted,
    tell_empty,
)
from .run import Run
from .sampler import RunSampler, check_plain, checked_sampler, run_once, sampled_advanced
from .text import encoded, tokenized
from .vae import check_tunable, decoded, decoded_size, loaded

__all__ = [
    # A run and what a method does in it
    "Run",
    "RunSampler",
    "check_plain",
    "checked_sampler",
    "run_once",
    "sampled_advanced",
    # GUIDERs, and guiders as samplers call them
    "RunGuider",
    "SampleCall",
    "SteerCFG",
    "guidance_of",
    "plain_guider",
    "patches_read_predictions",
    "patches_read_order",
    "Call",
    "WrappedGuider",
    "TwoPromptGuider",
    "in_lockstep",
    "PairConds",
    "guided_pair",
    "PairGuider",
    # Noise laws and levels
    "SCHEDULERS",
    "host_sigmas",
    "noise_law",
    "sigma_at",
    "strength_sigma",
    "window_of",
    # Inversions
    "InvertedNoise",
    "check_inversion_fits",
    "inversion_start",
    "latent_format_of",
    # What fits a model
    "check_every_call",
    "check_given",
    "free_ram",
    "samples_of",
    "fitted_mask",
    "fitted_noise_mask",
    "errors_of",
    # Conditionings and texts
    "HALF",
    "check_active",
    "equal",
    "half_of",
    "has_area",
    "negative_takes_over",
    "paired",
    "same",
    "time_limits",
    "windows",
    "encoded",
    "tokenized",
    # Attention
    "AttentionEdits",
    "Mark",
    "with_marked_edits",
    # Gradients, the VAE and CLIP
    "Differentiable",
    "gradient_options",
    "patcher_of",
    "GuidedModels",
    "memory_advice",
    "gradients",
    "own_weights",
    "check_tunable",
    "decoded",
    "decoded_size",
    "loaded",
    "embedded",
    "image_target",
    "text_target",
    # What the log and the editor are told
    "empty_of",
    "latent_picture",
    "log",
    "picture_preview",
    "previews",
    "progress_bar",
    "running_node",
    "show_output",
    "show_progress_text",
    "source_picture",
    "stop_if_interrupted",
    "tell_empty",
]
