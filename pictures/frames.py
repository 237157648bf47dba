"""Clips with room for new frames before, after and between those that are there."""

import torch
from torch import Tensor


def padded(frames: Tensor, before: int, after: int, following: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A clip (frames, h, w, channels) with `before` new frames before it and `after` behind, then a second clip.

    And the mask (frames, h, w), 1 in what is new. A new frame shows the nearest that is there, between two clips the
    earlier half the first's last and the rest the second's first.
    """
    end = frames[-1:] if following is None else following[:1].to(frames)
    held = (after + 1) // 2
    parts = [
        (frames[:1].expand(before, -1, -1, -1), 1.0),
        (frames, 0.0),
        (frames[-1:].expand(held, -1, -1, -1), 1.0),
        (end.expand(after - held, -1, -1, -1), 1.0),
    ]
    if following is not None:
        parts.append((following.to(frames), 0.0))
    masks = [torch.full(part.shape[:3], value, device=frames.device) for part, value in parts]
    return torch.cat([part for part, _ in parts]), torch.cat(masks)
