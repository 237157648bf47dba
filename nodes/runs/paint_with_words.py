"""The hook that paints under every conditioning that brings a painting."""

from torch import Tensor

from ...attention.core import Attention
from ...attention.layers import Site, frames_of
from ...attention.paint_with_words import Painting, Region, painted
from ..host import attention, errors_of, law
from ..host import masks as host_masks


class Painted:
    """A painting on the attention of its conditioning."""

    def __init__(self, painting: Painting, flow: bool):
        self.painting, self.flow = painting, flow

    def acts(self, kind: str, sigma: float) -> bool:
        return kind != "self" and self.painting.factor(sigma, self.flow) > 0.0

    def apply(self, rows: list[Attention], site: Site) -> list[Attention]:
        sizes = [len(part.v) for part in rows]
        tokens, device, frames = rows[0].tokens, rows[0].v.device, frames_of(site.latent)
        w = self.painting.map(site.grid, tokens, device, sum(sizes), frames).expand(sum(sizes), -1, -1, -1)
        factor = self.painting.factor(site.sigma, self.flow)
        return [painted(part, place, factor) for part, place in zip(rows, w.split(sizes), strict=True)]


def check_region(region: Region, latent: Tensor) -> None:
    """ValueError unless the mask is of the latent's aspect, and one for all of the batch or one for each."""
    with errors_of(f"mask of {region.phrase!r}"):
        masks = len(host_masks.fitted_mask(region.mask.float(), latent))
        if masks not in (1, len(latent)):
            raise ValueError(f"{masks} masks for a batch of {len(latent)} latents; give one for all or one for each")


class PaintingMark(attention.Mark):
    """A painting that a conditioning brings."""

    key = "steer_paint"

    def __init__(self, flow: bool):
        self.flow = flow

    def edit(self, painting: Painting) -> Painted:
        return Painted(painting, self.flow)

    def check(self, conds: list[dict], noise: Tensor, sigmas: Tensor) -> None:
        for cond in conds:
            if cond.get("area") is not None or cond.get("set_area_to_bounds"):
                raise ValueError(
                    "a painted conditioning has an area, and its regions are of the whole picture; remove the area"
                )
            for region in cond[self.key].regions:
                check_region(region, noise)


def with_painting(model, node: str):
    """A clone of the model that paints what conditionings bring; once is enough for all of them."""
    flow = law.noise_law(model.get_model_object("model_sampling")).flow
    return attention.with_marked_edits(model, node, PaintingMark(flow), once=True)
