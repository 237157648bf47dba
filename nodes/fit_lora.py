"""A LoRA fitted with any loss over inversions (DiffusionCLIP)."""

import torch
from comfy_api.latest import io

from .host import GuidedModels, RunSampler, checks, inverted, log, lora, plain_guider, progress
from .inputs import scale, whole
from .runs.fit_lora import LESS, NODE, Fitting, Settings, check_pictures, check_prompts, report
from .schema import advanced, check_encoded, shown, where_known
from .wires import LoraModel, LossMap, SteerInversion, SteerLoss


class SteerFitLoRA(io.ComfyNode):
    """A LoRA that changes every picture as a loss asks, fitted over inversions (DiffusionCLIP, arXiv:2110.02711)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Fit LoRA (Steer)",
            category="Steer/losses",
            description="Fits a LoRA to a loss, such as CLIP Direction Loss, over some inverted pictures: generated "
            "again from their inversions they come out changed, and so does every other picture that is inverted and "
            "sampled with the LoRA, without any gradient then. The model stays as it is.",
            **where_known(
                has_intermediate_output=True,  # its report is sent again where its result is taken from the cache
                search_aliases=["diffusionclip", "train lora", "fine-tune", "clip loss training"],
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that the pictures were inverted with; it is not changed."),
                io.Conditioning.Input(
                    "positive", tooltip="One prompt for all pictures, the one that they were inverted with."
                ),
                SteerLoss.Input(
                    "loss",
                    tooltip="What is to become less. CLIP Direction Loss: with the pictures themselves as its image.",
                ),
                SteerInversion.Input(
                    "inversion",
                    tooltip="Of some pictures, a batch: of part of the way (SDEdit Sigmas), in few steps, refined.",
                ),
                whole("rank", 8, 128, "Of the LoRA. More can change more, and makes a larger file.", least=1),
                io.Float.Input(
                    "learning_rate",
                    default=1e-3,
                    min=1e-7,
                    max=1.0,
                    step=1e-4,
                    round=False,
                    tooltip="Of Adam, on the LoRA's weights.",
                ),
                whole("iterations", 5, 1000, "How often it goes through all pictures.", least=1),
                io.Float.Input(
                    "keep",
                    default=0.5,
                    min=0.0,
                    max=10000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="The weight of the estimate's mean distance from the picture, beside the loss.",
                ),
                advanced(scale("cfg", 1.0, "Guidance that will be sampled with. Other than 1 it needs a negative.")),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Of the LoRA's first weights and of what the loss draws (cutouts).",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="For a cfg other than 1."),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA Weights."),
                LossMap.Output(
                    display_name="loss_map",
                    tooltip="The mean of loss and distance over each picture's steps, for Plot Loss Graph.",
                ),
                io.Int.Output(display_name="steps", tooltip="How many updates were made, for Save LoRA Weights."),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, loss, inversion, rank, learning_rate, iterations, keep, cfg, seed, negative=None
    ) -> io.NodeOutput:
        check_encoded(positive=positive, negative=negative)
        checks.check_every_call(model.model_options)
        inverted.check_fits(inversion, model)
        check_pictures(loss, inversion)
        check_prompts(positive=positive, negative=negative)
        guider = guider_of(model, positive, negative, cfg)
        settings = Settings(rank, learning_rate, iterations, keep, seed)
        shape = (1, *inversion.latents[0].shape[1:])
        models = GuidedModels(NODE, list(loss.patchers), True, loss.memory(shape), weights=True, less=LESS)
        fitting = Fitting(loss, inversion, settings, lora.layers_of(model), models)
        guider.model_patcher = models.loaded_with(guider.model_patcher)
        # the models' own preparation looks at the latent
        source = model.get_model_object("latent_format").process_out(inversion.latents[-1][:1])
        options = progress.previews(model, fitting.updates) | {"seed": seed}
        RunSampler(NODE, fitting).run_once(guider, torch.tensor(inversion.sigmas), source, **options)
        text = report(fitting)
        log.info("%s: %s", NODE, text)
        return io.NodeOutput(fitting.lora, {"loss": fitting.passes()}, fitting.updates, ui=shown(text))


def guider_of(model, positive, negative, cfg: float):
    """The host's guider; ValueError where there is nothing to guide away from."""
    if cfg != 1.0 and negative is None:
        raise ValueError(f"cfg is {cfg:g}, which needs a negative; connect one, or set cfg to 1")
    guider = plain_guider(model, {"positive": positive, "negative": positive if negative is None else negative})
    guider.set_cfg(cfg)
    return guider


NODES = [SteerFitLoRA]
