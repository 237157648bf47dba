"""What a text encoder learns before the model does: who is who in a caption. T5, too, was trained before its models.

From the outputs at an object's words, linear layers read what else the caption says of it. Without this a transformer
takes captions for bags of words: "a green star on a blue background" is "a blue star on a green background" to it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, BATCH, LEARNING_RATE = 600, 128, 2e-3

Roles = dict[int, list[int]]  # by place of a token in a caption, the numbers of what it is to be read as


def learn(net: nn.Module, ids: Tensor, roles: Sequence[Roles], sizes: Sequence[int], steps: int = STEPS) -> float:
    """Trains `net.text`, in place, on captions `ids` (n, tokens) by `net.encode`; the last batch's share read right.

    `roles` has n entries; `sizes` says how many values each of a role's numbers can have.
    """
    heads = nn.Linear(net.encode(ids[:1]).shape[-1], sum(sizes))
    optimizer = torch.optim.AdamW([*net.text.parameters(), *heads.parameters()], lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / 50, 3 * (1 - step / steps))
        rows = torch.randint(len(ids), (BATCH,))
        told = [roles[row] for row in rows.tolist()]
        items, places = torch.tensor([(item, place) for item, role in enumerate(told) for place in role]).T
        wanted = torch.tensor([numbers for role in told for numbers in role.values()])
        logits = heads(net.encode(ids[rows])[items, places]).split(list(sizes), 1)
        loss = torch.stack([F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(logits)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    read = torch.stack([part.argmax(1) for part in logits], 1)
    return (read == wanted).all(1).float().mean().item()
