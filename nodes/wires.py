"""The types Steer's nodes pass on wires."""

from comfy_api.latest import io

SteerInversion = io.Custom("STEER_INVERSION")
"""A `samplers.inversion.Inversion`: finished and immutable."""

SteerEdit = io.Custom("STEER_EDIT")
"""An `attention.prompt_to_prompt.Edit`: what changes from one prompt to another."""

SteerAttention = io.Custom("STEER_ATTENTION")
"""An `attention.attention_maps.Recording`: the attention of a finished run."""

SteerRegions = io.Custom("STEER_REGIONS")
"""A tuple of `attention.paint_with_words.Region`."""

SteerLoss = io.Custom("STEER_LOSS")
"""A `runs.loss_terms.SteerLossValue`: what is to become less."""

SteerOperator = io.Custom("STEER_OPERATOR")
"""A tuple of `samplers.measurement.Operator`: what was done to a picture, in order."""

SteerClassifier = io.Custom("STEER_CLASSIFIER")
"""A `samplers.classifier.Classifier`."""

DepthModel = io.Custom("DA3_MODEL,MOGE_MODEL")
"""The host's own two types of depth networks, either of them; older hosts have none."""

LoraModel = io.Custom("LORA_MODEL")
"""The host's LoRA, by the names of its layers: what Save LoRA Weights and Load LoRA Model take."""

LossMap = io.Custom("LOSS_MAP")
"""The host's losses of a training: what Plot Loss Graph takes."""
