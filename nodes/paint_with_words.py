"""Paint-with-words: regions for phrases of the prompt, from masks or a colour-coded map."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..attention.paint_with_words import Painting, Region, check_phrase
from ..pictures.legend import absent, parse_legend, segments
from ..pictures.maps import COLOURS, regions_picture
from .host import encoded, log, progress, tokenized
from .picture_inputs import check_picture
from .runs.paint_with_words import PaintingMark, with_painting
from .schema import PICTURES, answer_of, shown, where_known
from .wires import SteerRegions


class SteerRegion(io.ComfyNode):
    """A place for a phrase."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerRegion",
            display_name="Region (Steer)",
            category="Steer/attention",
            description="A place for a phrase of the prompt, for Paint with Words. Chain several.",
            **where_known(
                has_intermediate_output=True,  # its map is sent again where its result is taken from the cache
                search_aliases=[
                    "regional prompt",
                    "area prompt",
                    "layout",
                    "composition",
                    "couple",
                    "attention couple",
                ],
            ),
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="White is the place, grey a weaker pull. One, or one for each picture or frame."
                ),
                io.String.Input("phrase", default="", tooltip="Words of the prompt, next to each other: `red circle`."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Factor on the weight, for this region.",
                ),
                SteerRegions.Input("regions", optional=True, tooltip="Regions to add this one to."),
            ],
            outputs=[SteerRegions.Output(display_name="regions", tooltip="For Paint with Words, or a further Region.")],
        )

    @classmethod
    def validate_inputs(cls, phrase):
        return answer_of((check_phrase, phrase))

    @classmethod
    def execute(cls, mask, phrase, strength, regions=()) -> io.NodeOutput:
        region = Region(mask, phrase, strength)
        masks = mask.reshape(-1, *mask.shape[-2:])
        warning = progress.empty_of(f"mask of {phrase!r}", masks, "nothing is painted")
        regions = (*(regions or ()), region)
        return io.NodeOutput(regions, ui=report("SteerRegion", regions, warning))


class SteerRegionsFromSegmentation(io.ComfyNode):
    """Regions from a map of colours."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerRegionsFromSegmentation",
            display_name="Regions from Segmentation (Steer)",
            category="Steer/attention",
            description="Reads a colour-coded map: which colour is the place of which phrase of the prompt.",
            **where_known(
                has_intermediate_output=True,  # its map is sent again where its result is taken from the cache
                search_aliases=[
                    "regional prompt",
                    "paint with words",
                    "segmentation map",
                    "layout",
                    "color map",
                ],
            ),
            inputs=[
                io.Image.Input("image", tooltip="The map. Colours may be a little off, as JPEG makes them."),
                io.String.Input(
                    "legend",
                    multiline=True,
                    default="#ff0000: cat\n#0000ff: sky",
                    tooltip="A line for each colour: `red: cat`, `#ff0000: cat` or `255, 0, 0: cat`. Other colours of "
                    "the image are no region.",
                ),
            ],
            outputs=[SteerRegions.Output(display_name="regions", tooltip="For Paint with Words, or a further Region.")],
        )

    @classmethod
    def validate_inputs(cls, legend):
        return answer_of((parse_legend, legend))

    @classmethod
    def execute(cls, image, legend) -> io.NodeOutput:
        check_picture("image", image, alpha=True)
        legend = parse_legend(legend)
        places = segments(image, legend)
        regions = tuple(Region(mask, of.phrase, of.strength) for mask, of in zip(places, legend, strict=True))
        node, missing = "SteerRegionsFromSegmentation", absent(image, legend, places)
        colours = torch.tensor([entry.colour for entry in legend]) / 255.0
        return io.NodeOutput(regions, ui=report(node, regions, missing, colours))


class SteerPaintWithWords(io.ComfyNode):
    """Layout by cross-attention, without training (arXiv:2211.01324, section 4.3)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SteerPaintWithWords",
            display_name="Paint with Words (Steer)",
            category="Steer/attention",
            description="Encodes a prompt and places its phrases: where a region is painted, the picture attends more "
            "to the region's phrase while its layout is made.",
            **where_known(
                has_intermediate_output=True,  # its map is sent again where its result is taken from the cache
                search_aliases=[
                    "regional prompt",
                    "area prompt",
                    "ediff-i",
                    "layout",
                    "composition",
                    "couple",
                    "attention couple",
                ],
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A UNet (SD1.x, SD2.x, SDXL) or transformer (SD3, Flux, Wan, ...); it is not changed.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "text", multiline=True, default="", tooltip="The prompt. It has to contain the regions' phrases."
                ),
                SteerRegions.Input("regions", tooltip="From Region or Regions from Segmentation."),
                io.Float.Input(
                    "weight",
                    default=0.4,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly regions pull. 0 is plain sampling; too much spoils the picture.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For the guider or KSampler; it paints what its conditionings bring."),
                io.Conditioning.Output(tooltip="The prompt with its regions, for the guider or KSampler (positive)."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, text, regions, weight) -> io.NodeOutput:
        node = "SteerPaintWithWords"
        prompt = tokenized(clip, text)
        painting = Painting(regions, prompt, weight)
        conditioning = encoded(clip, prompt, {PaintingMark.key: painting})
        painting_model = with_painting(model, node)
        return io.NodeOutput(painting_model, conditioning, ui=report(node, regions))


def report(node: str, regions: tuple[Region, ...], warning: str = "", colours: Tensor = COLOURS) -> dict:
    """What the node shows: the warning, which is logged too, each region's share of the picture, and the map."""
    if warning:
        log.warning("%s: %s", node, warning)
    shares = [f"{region.phrase} {100 * float((region.mask > 0).float().mean()):.0f}%" for region in regions]
    text = f"{', '.join(shares)} of the picture"
    return shown(f"{warning}\n{text}" if warning else text, warning, regions_picture(regions, colours, PICTURES))


NODES = [SteerRegion, SteerRegionsFromSegmentation, SteerPaintWithWords]
