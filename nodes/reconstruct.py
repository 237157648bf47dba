"""The background through the VAE: the latent, or a copy of the decoder, fitted to the picture."""

from comfy_api.latest import io

from ..samplers.core import check_values
from .host import vae as host_vae
from .picture_inputs import check_batches, check_picture, mask_like, sides
from .runs.reconstruct import Problem, fit_each, fitted_latent, fitted_picture
from .schema import advanced, where_known

LATENT, DECODER = "SteerReconstructLatent", "SteerReconstructDecoder"


def inputs(learning_rate: float, of: str) -> list:
    return [
        io.Vae.Input("vae", tooltip="The VAE that the latent belongs to; it is not changed."),
        io.Image.Input("source", tooltip="The picture whose background is to stay, of the size the latent decodes to."),
        io.Latent.Input("latent", tooltip="The edit as sampled, not yet decoded."),
        io.Mask.Input("mask", tooltip="1 stays as it decodes, 0 is to be the source. In pixels or in latents."),
        io.Int.Input("steps", default=75, min=1, max=10000, tooltip="Updates, each one decoding and the way back."),
        advanced(
            io.Float.Input(
                "learning_rate",
                default=learning_rate,
                min=1e-8,
                max=10.0,
                step=learning_rate / 10,
                round=False,
                tooltip=f"Of Adam, {of}.",
            )
        ),
    ]


class SteerReconstructLatent(io.ComfyNode):
    """The latent fitted until it decodes to the source outside the mask (arXiv:2206.02779, section 3.2)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LATENT,
            display_name="Reconstruct Background: Latent (Steer)",
            category="Steer/background",
            description="Changes the latent until what it decodes to is the source outside the mask and as before "
            "inside. It can only show what the decoder can; Reconstruct Background: Decoder comes closer.",
            **where_known(search_aliases=["keep background", "vae fix", "restore details"]),
            inputs=inputs(0.1, "in units of the latent's standard deviation"),
            outputs=[io.Latent.Output(tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae, source, latent, mask, steps, learning_rate) -> io.NodeOutput:
        problems = problems_of(vae, source, latent["samples"], mask, steps, learning_rate)
        samples = fit_each(LATENT, vae, fitted_latent, problems)
        return io.NodeOutput({**latent, "samples": samples})


class SteerReconstructDecoder(io.ComfyNode):
    """A copy of the decoder fitted to each picture (arXiv:2206.02779, section 3.2)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=DECODER,
            display_name="Reconstruct Background: Decoder (Steer)",
            category="Steer/background",
            description="Decodes an edit so that the background is the source: a copy of the VAE's decoder is fitted "
            "to this one picture, outside the mask to the source and inside to what it decodes to anyway. No seam, "
            "since one decoder draws the whole picture. The VAE stays as it is.",
            **where_known(search_aliases=["keep background", "vae fix", "restore details", "decoder tuning"]),
            inputs=inputs(1e-4, "on the decoder's weights"),
            outputs=[io.Image.Output(tooltip="The decoded picture; Stitch makes its background the source exactly.")],
        )

    @classmethod
    def execute(cls, vae, source, latent, mask, steps, learning_rate) -> io.NodeOutput:
        problems = problems_of(vae, source, latent["samples"], mask, steps, learning_rate)
        return io.NodeOutput(fit_each(DECODER, vae, fitted_picture, problems))


def problems_of(vae, source, samples, mask, steps, learning_rate) -> list[Problem]:
    """Each latent with its source and mask; ValueError for what does not fit together."""
    check_picture("source", source)
    host_vae.check_tunable(vae, samples)
    check_values("latent", samples)
    height, width = host_vae.decoded_size(vae, samples)
    if source.shape[1:3] != (height, width):
        raise ValueError(
            f"source is {sides(source)} and latent decodes to {width}x{height}; crop or scale the source to that "
            "size (a VAE crops what it encodes to multiples of 8)"
        )
    mask = mask_like(mask, height, width)
    count = check_batches(latent=len(samples), source=len(source), mask=len(mask))
    if count != len(samples):
        raise ValueError(f"there are {count} sources or masks for one latent; give one latent for each")
    return [
        Problem(
            source[min(index, len(source) - 1)][None],
            samples[index][None],
            mask[min(index, len(mask) - 1)][None],
            steps,
            learning_rate,
        )
        for index in range(count)
    ]


NODES = [SteerReconstructLatent, SteerReconstructDecoder]
