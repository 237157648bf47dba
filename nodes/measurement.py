"""Measured pictures: what a picture agrees with once it is made gray, small, blurred, cropped or a JPEG."""

from comfy_api.latest import io

from ..samplers.jpeg import JPEG
from ..samplers.measurement import METHODS, Blur, Crop, Gray, Operator, Resize
from .inputs import whole
from .picture_inputs import check_batches, check_picture, mask_like
from .runs.measurement import MeasurementLoss
from .schema import advanced, where_known
from .wires import SteerLoss, SteerOperator

NODE = "SteerMeasurementLoss"


class SteerMeasurementLoss(io.ComfyNode):
    """The distance of what a picture becomes to a picture that was measured (arXiv:2209.14687, 2305.08995)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=NODE,
            display_name="Measurement Loss (Steer)",
            category="Steer/losses",
            description="How far the picture, made gray, small, blurred, cropped or a JPEG, is from one that you "
            "have: colourise it, enlarge it, sharpen it, clean it, draw round it. For Gradient Guider with scale 1 and "
            "max_change 1.",
            **where_known(
                search_aliases=[
                    "restore",
                    "restoration",
                    "inverse problem",
                    "colorize",
                    "colourise",
                    "super-resolution",
                    "upscale",
                    "deblur",
                    "uncrop",
                    "dps",
                ]
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE: what it decodes is compared."),
                io.Image.Input("image", tooltip="What was measured: one for all, or one for each of the batch."),
                io.Float.Input(
                    "noise",
                    default=0.05,
                    min=0.001,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="How far off its pixels may be, as a standard deviation (pixels are 0 to 1). Less holds "
                    "harder to the image; below what the VAE itself loses (0.02 to 0.06) it paints noise.",
                ),
                SteerOperator.Input(
                    "operator",
                    optional=True,
                    tooltip="What was done to the picture. Nothing: the image is the picture.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = the image counts here, 0 = it was not measured. Of the image's size.",
                ),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )

    @classmethod
    def execute(cls, vae, image, noise, operator=None, mask=None) -> io.NodeOutput:
        check_picture("image", image)
        weight = None
        if mask is not None:
            weight = mask_like(mask, *image.shape[1:3])
            check_batches(image=len(image), mask=len(weight))
        return io.NodeOutput(MeasurementLoss(vae, image, noise, operator or (), weight))


def schema_of(node_id: str, name: str, description: str, aliases: list[str], inputs: list) -> io.Schema:
    """The schema of an operator, which goes behind another."""
    before = SteerOperator.Input("operator", optional=True, tooltip="What was done to the picture before.")
    return io.Schema(
        node_id=node_id,
        display_name=f"{name} (Steer)",
        category="Steer/losses",
        description=f"{description} For Measurement Loss; operators chain in the order in which they were done.",
        **where_known(search_aliases=aliases),
        inputs=[*inputs, before],
        outputs=[SteerOperator.Output(tooltip="For Measurement Loss, or for the next operator.")],
    )


def chained(before: tuple[Operator, ...] | None, operator: Operator) -> io.NodeOutput:
    """The operator behind those before; ValueError behind a JPEG, whose cells are known of its own pixels alone."""
    if before and isinstance(before[-1], JPEG):
        raise ValueError(
            "operator ends with SteerJPEGOperator, which has to be the last: of a picture that was changed after it "
            "the cells are not known; put it behind this one"
        )
    return io.NodeOutput((*(before or ()), operator))


class SteerGrayOperator(io.ComfyNode):
    """The picture without its colours: the weighted mean of red, green and blue (ITU-R BT.601)."""

    @classmethod
    def define_schema(cls):
        return schema_of(
            "SteerGrayOperator",
            "Gray Operator",
            "The picture became gray. A measured picture in colours counts by its gray.",
            ["grayscale", "colorize", "colourise", "black and white", "desaturate"],
            [],
        )

    @classmethod
    def execute(cls, operator=None) -> io.NodeOutput:
        return chained(operator, Gray())


class SteerResizeOperator(io.ComfyNode):
    """The picture made smaller, antialiased."""

    @classmethod
    def define_schema(cls):
        inputs = [
            io.Combo.Input(
                "method",
                options=list(METHODS),
                default="area",
                tooltip="How it was made smaller. area: the mean of the pixels, as cameras and pixel art; bicubic and "
                "lanczos as Pillow and most programs do.",
            ),
            advanced(whole("width", 0, 16384, "The width it got. 0: that of Measurement Loss's image.")),
            advanced(whole("height", 0, 16384, "The height it got. 0: that of Measurement Loss's image.")),
        ]
        return schema_of(
            "SteerResizeOperator",
            "Resize Operator",
            "The picture was made smaller.",
            ["super-resolution", "upscale", "downscale"],
            inputs,
        )

    @classmethod
    def execute(cls, method, width, height, operator=None) -> io.NodeOutput:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; {', '.join(METHODS)} work")
        if (width == 0) != (height == 0):
            raise ValueError(f"width is {width} and height {height}; give both, or 0 for both")
        return chained(operator, Resize(width, height, method))


class SteerBlurOperator(io.ComfyNode):
    """The picture blurred, by a Gaussian, by motion, or by both."""

    @classmethod
    def define_schema(cls):
        inputs = [
            io.Float.Input(
                "std",
                default=2.0,
                min=0.0,
                max=64.0,
                step=0.1,
                round=0.01,
                tooltip="Out of focus: the Gaussian's standard deviation in pixels. 0 is sharp.",
            ),
            advanced(whole("motion", 1, 256, "Moved by so many pixels while it was taken. 1 is not at all.", least=1)),
            advanced(
                io.Float.Input(
                    "angle",
                    default=0.0,
                    min=-180.0,
                    max=180.0,
                    step=1.0,
                    round=0.1,
                    tooltip="The direction of the motion in degrees, counter-clockwise from level.",
                )
            ),
        ]
        return schema_of(
            "SteerBlurOperator",
            "Blur Operator",
            "The picture was blurred.",
            ["deblur", "sharpen", "motion blur"],
            inputs,
        )

    @classmethod
    def execute(cls, std, motion, angle, operator=None) -> io.NodeOutput:
        return chained(operator, Blur(std, motion, angle))


class SteerCropOperator(io.ComfyNode):
    """A part of the picture."""

    @classmethod
    def define_schema(cls):
        inputs = [
            whole("x", 0, 16384, "Where the part begins, in pixels from the left of the picture that is sampled."),
            whole("y", 0, 16384, "The same from the top."),
            advanced(whole("width", 0, 16384, "The part's width. 0: that of Measurement Loss's image.")),
            advanced(whole("height", 0, 16384, "The part's height. 0: that of Measurement Loss's image.")),
        ]
        return schema_of("SteerCropOperator", "Crop Operator", "The picture was cropped.", ["uncrop"], inputs)

    @classmethod
    def execute(cls, x, y, width, height, operator=None) -> io.NodeOutput:
        return chained(operator, Crop(x, y, width, height))


class SteerJPEGOperator(io.ComfyNode):
    """The picture saved as a JPEG: any that compresses to the same file agrees with it."""

    @classmethod
    def define_schema(cls):
        inputs = [
            whole("quality", 75, 100, "The quality it was saved with, by the tables of libjpeg, as Pillow and most "
                  "programs count. Rather too low than too high.", least=1),
            io.Boolean.Input(
                "subsampling",
                default=True,
                tooltip="On: colours at half the size (4:2:0), as most programs save. Off: at full size (4:4:4).",
            ),
        ]  # fmt: skip
        return schema_of(
            "SteerJPEGOperator",
            "JPEG Operator",
            "The picture was saved as a JPEG, from its upper left corner on. The last of a chain.",
            ["artifacts", "compression", "deblock", "jpeg restoration"],
            inputs,
        )

    @classmethod
    def execute(cls, quality, subsampling, operator=None) -> io.NodeOutput:
        return chained(operator, JPEG(quality, subsampling))


NODES = [
    SteerMeasurementLoss,
    SteerGrayOperator,
    SteerResizeOperator,
    SteerBlurOperator,
    SteerCropOperator,
    SteerJPEGOperator,
]
