"""How attention edits reach the host's models: which rows are whose, and the hook at each attention layer.

Edits ride in `transformer_options` by conditioning (uuid), and one wrapper round the model call installs them, on top
of whatever patches that call already has: nothing is left on the model, and the order of patch nodes does not matter.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import comfy.controlnet
import comfy.utils
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, get_wrappers_with_key
from torch import Tensor

from ..attention.core import Attention, Site, Term
from ..attention.prompt_to_prompt import coarse
from ..attention.tokens import Prompt, prompt_of
from ._host import CheckedSampler
from ._host_checks import check_given, errors_of
from ._host_embeddings import embeddings_of

EDITS, SITES, KEY = "steer_edits", "steer_sites", "steer"
HALF = "steer_half"
"""What a conditioning is of an edit: ("source" or "target", the source's text, the target's). Told by content alone."""
PARTS = {"input_blocks": "input", "middle_block": "middle", "output_blocks": "output"}


class Transform:
    """An edit as the hook calls it. `acts` decides whether a layer is touched at all in a model call."""

    looks = False
    """Changes nothing, and comes after all that do."""

    def acts(self, cross: bool, sigma: float) -> bool:
        raise NotImplementedError

    def __call__(self, rows: list[Attention], site: Site) -> list[Attention]:
        """The rows of one conditioning, in parts that follow each other; the parts may be split further.

        The very list that was given means that nothing changes.
        """
        raise NotImplementedError


class Edits(NamedTuple):
    """What is done to the rows of one conditioning, in order; `tokens` is the length of its own context."""

    transforms: tuple[Transform, ...]
    tokens: int


def attention_sites(model) -> tuple[tuple[str, int, int], ...]:
    """The transformer blocks with cross-attention, as the host addresses them; ValueError for a model that has none."""
    sites = []
    for name, module in model.diffusion_model.named_modules():
        parts = name.split(".")
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None and parts[0] in PARTS:
            number = 0 if parts[0] == "middle_block" else int(parts[1])
            if parts[-2] == "transformer_blocks":
                sites.append((PARTS[parts[0]], number, int(parts[-1])))
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no cross-attention blocks to edit; the attention nodes work on UNets (SD1.x, "
            "SD2.x, SDXL). For other models use the inversion, blending and guidance nodes"
        )
    return tuple(sites)


UNSEEN = {
    "torch_compile_kwargs": "is compiled (TorchCompileModel), and compiled attention does not notice what is edited",
    "context_handler": "has context windows, whose calls are of a part of the batch or of the frames",
}


def with_edits(model_options: dict, sites: tuple, edits: dict[object, Edits]) -> dict:
    """The model options for calls in which the rows of these conditionings (by uuid) are edited, too.

    ValueError for a model whose layers do not see each call as it is.
    """
    for key, problem in UNSEEN.items():
        if key in model_options:
            raise ValueError(f"the model {problem}; remove that, or the attention edit")
    options = dict(model_options.get("transformer_options", {}))
    there = options.get(EDITS, {})
    both = {
        uuid: Edits(_in_order(there[uuid].transforms + edits[uuid].transforms), edits[uuid].tokens)
        for uuid in there.keys() & edits.keys()
    }
    options[EDITS], options[SITES] = {**there, **edits, **both}, sites
    if not get_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY, options):
        options["wrappers"] = {kind: dict(by_key) for kind, by_key in options.get("wrappers", {}).items()}
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _with_hooks, options)
    return {**model_options, "transformer_options": options}


def with_patches_unwatched(model_options: dict) -> dict:
    """The model options for calls in which what only looks at attention does not see a patch's own (as PAG's) calls.

    Such a patch calls the model once more after guidance, with attention that is not the prediction's.
    """
    patches = model_options.get("sampler_post_cfg_function", [])
    return {**model_options, "sampler_post_cfg_function": [partial(_unwatched, patch) for patch in patches]}


def _unwatched(patch: Callable, args: dict) -> Tensor:
    options = args["model_options"]["transformer_options"]
    edits = {
        uuid: Edits(tuple(each for each in transforms if not each.looks), tokens)
        for uuid, (transforms, tokens) in options.get(EDITS, {}).items()
    }
    return patch({**args, "model_options": {**args["model_options"], "transformer_options": {**options, EDITS: edits}}})


def _in_order(transforms: tuple[Transform, ...]) -> tuple[Transform, ...]:
    return tuple(sorted(transforms, key=lambda transform: transform.looks))


def edits_of(conds: list[dict], *transforms: Transform) -> dict:
    """The same edits for each of these processed conditionings."""
    return {cond["uuid"]: Edits(transforms, cond["cross_attn"].shape[1]) for cond in conds}


def with_marked_edits(
    model,
    node: str,
    mark: str,
    transform_of: Callable[[object], Transform | None],
    check: Callable[[list[dict], Tensor, Tensor], None],
):
    """A clone of the model that edits the rows of every conditioning with this mark, in whatever guider it runs.

    `transform_of(marked value)` is asked at each model call; `check(marked conditionings, noise, sigmas)` once,
    before the first.
    """
    sites = attention_sites(model.model)

    def before(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        conds = [cond for conds in executor.class_obj.conds.values() for cond in conds]
        marked = [cond for cond in conds if mark in cond and transform_of(cond[mark])]
        with errors_of(node):
            if not marked:
                raise ValueError(
                    "no conditioning of this run belongs to this patch; connect the CONDITIONING that was made for it "
                    "to the guider"
                )
            check_given(executor.class_obj.model_patcher.model, sigmas, latent_image, None)
            check(marked, noise, sigmas)
        return executor(noise, latent_image, CheckedSampler(node, sampler), sigmas, *args, **kwargs)

    def during(executor, model, conds, x_in, timestep, model_options):
        edits = {}
        for cond in (cond for part in conds if part for cond in part if mark in cond):
            transform = transform_of(cond[mark])
            if transform is not None:
                edits |= edits_of([cond], transform)
        with errors_of(node):
            options = with_edits(model_options, sites, edits) if edits else model_options
        return executor(model, conds, x_in, timestep, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, node, before)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, node, during)
    return model


def _with_hooks(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    edits, uuids = transformer_options.get(EDITS, {}), transformer_options["uuids"]
    if any(uuid in edits for uuid in uuids):
        sigma = float(transformer_options["sigmas"].max())
        size = x.shape[0] // len(uuids)
        chunks = [(slice(i * size, (i + 1) * size), edits.get(uuid)) for i, uuid in enumerate(uuids)]
        replaced = dict(transformer_options.get("patches_replace", {}))
        for layer, cross in (("attn1", False), ("attn2", True)):
            acting = [
                (rows, edit and Edits(tuple(f for f in edit.transforms if f.acts(cross, sigma)), edit.tokens))
                for rows, edit in chunks
            ]
            if any(edit and edit.transforms for _, edit in acting):
                given = replaced.get(layer, {})
                replaced[layer] = dict(given)
                for block in transformer_options[SITES]:
                    site = partial(Site, block, cross, latent=tuple(x.shape[-2:]), sigma=sigma)
                    hook = _Hook(acting, site, given.get(block, given.get(block[:2])), c_crossattn.shape[1], x.shape[0])
                    replaced[layer][block] = hook
        transformer_options = {**transformer_options, "patches_replace": replaced}
    return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)


class _Hook(NamedTuple):
    """The host's replacement of one attention layer, for one model call."""

    chunks: list[tuple[slice, Edits | None]]
    site: Callable[..., Site]
    previous: Callable | None
    context: int
    rows: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        def kernel(q, k, v, bias=None):
            return optimized_attention(
                q, k, v, extra_options["n_heads"], mask=bias, attn_precision=extra_options["attn_precision"],
                transformer_options=extra_options,
            )  # fmt: skip

        site = self.site(grid=tuple(extra_options["activations_shape"][-2:]))
        self._check(q, k, site)
        if q.shape[0] != self.rows:  # a video model's attention over time
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        made = [self._part(rows, edits, q, k, v, kernel, extra_options["n_heads"], site) for rows, edits in self.chunks]
        if not any(changed for _, changed in made):  # bit for bit what it would have been
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        parts = [part for part, _ in made]
        if not site.cross:
            # edits of self-attention choose queries and keys: what was there before can take those
            q, k = (torch.cat([getattr(part.terms[0], name) for chunk in parts for part in chunk]) for name in "qk")
            return self.previous(q, k, v, extra_options) if self.previous else kernel(q, k, v)
        if self.previous is None:
            return torch.cat([part.out() for chunk in parts for part in chunk])
        # a patch that adds to the attention (as IPAdapter's) keeps adding what it adds
        out = self.previous(q, k, v, extra_options)
        changes = [
            torch.cat([part.out() for part in chunk]) - kernel(q[rows], k[rows], v[rows])
            if changed
            else torch.zeros_like(out[rows])
            for (chunk, changed), (rows, _) in zip(made, self.chunks, strict=True)
        ]
        return out + torch.cat(changes)

    def _part(self, rows, edits, q, k, v, kernel, heads, site) -> tuple[list[Attention], bool]:
        """The rows' attention after their transforms, and whether any changed it."""
        tokens = edits.tokens if edits and edits.transforms and site.cross else k.shape[1]
        given = parts = [Attention((Term(q[rows], k[rows, :tokens]),), v[rows, :tokens], heads, kernel)]
        for transform in edits.transforms if edits else ():
            parts = transform(parts, site)
        return parts, parts is not given

    def _check(self, q: Tensor, k: Tensor, site: Site) -> None:
        positions = site.grid[0] * site.grid[1]
        layer, tokens = ("attn2", self.context) if site.cross else ("attn1", positions)
        tiled = q.shape[0] != k.shape[0] and coarse(site)  # by HyperTile, where attention would be shared
        if tiled or (q.shape[0] == self.rows and (q.shape[1] != positions or k.shape[1] != tokens)):
            raise ValueError(
                f"a patch on {layer} changes the number of positions or tokens ({q.shape[1]} and {k.shape[1]} instead "
                f"of {positions} and {tokens}), so that words and places cannot be told any "
                "more; remove the patch (token merging or HyperTile, for example) or the attention edit"
            )


def tokenized(clip, text: str) -> Prompt:
    """The prompt's tokens at the places where the model sees them; ValueError for an encoder without CLIP's tokens."""
    check_writable(text)
    by_encoder = clip.tokenize(text)
    for name in ("l", "g", "h"):
        tokenizer = getattr(clip.tokenizer, f"clip_{name}", None)
        if name in by_encoder and tokenizer is not None:
            words, vectors = tokenizer.inv_vocab, iter(embeddings_of(clip, text, by_encoder, name))
            chunks = [
                [next(vectors) if torch.is_tensor(t) else words[t] for t, *_ in chunk] for chunk in by_encoder[name]
            ]
            return prompt_of(text, chunks)
    raise ValueError(
        f"this text encoder ({type(clip.tokenizer).__name__}) has no CLIP tokens, so words cannot be told apart in its "
        "attention; the attention nodes work with SD1.x, SD2.x and SDXL"
    )


def check_writable(text: str) -> None:
    """ValueError for halves of characters, which JSON can hold and no text encoder takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{text[:100]!r} holds a half of a character (a lone surrogate); write the text anew")


def encoded(clip, prompt: Prompt, also: dict | None = None) -> list:
    """The prompt as CONDITIONING, with further options; ValueError unless it has one embedding for each token."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text), add_dict=also or {})
    found = conditioning[0][0].shape[1]
    if found != prompt.length:
        raise ValueError(
            f"{prompt.text!r} has {prompt.length} tokens and {found} embeddings: this text encoder joins others to "
            "CLIP's; the attention nodes work with SD1.x, SD2.x and SDXL"
        )
    return conditioning


def paired(source, target, batch: int) -> list:
    """Two conditionings as one, for latents of which the first `batch` are the source's, the next the target's.

    ValueError where they differ in more than their text (an area, a ControlNet, hooks): one model call takes both.
    """
    if len(source) != len(target):
        raise ValueError(
            f"source has {len(source)} conditionings and target {len(target)}; make both in the same way, "
            "one prompt each"
        )
    pairs = []
    for (a, of_a), (b, of_b) in zip(source, target, strict=True):
        for name in sorted(of_a.keys() | of_b.keys()):
            if name not in TEXTS and not _alike(of_a.get(name), of_b.get(name)):
                raise ValueError(
                    f"source and target differ in {name!r}; they run in one model call and can only differ in their "
                    "text: send both through the same nodes (one ControlNet Apply takes both as positive and negative)"
                )
        pooled = of_a.get("pooled_output"), of_b.get("pooled_output")
        for one, other in ((a, b), pooled):
            if one is not None and other is not None and one.shape[-1] != other.shape[-1]:
                raise ValueError(
                    f"source is encoded {one.shape[-1]} wide and target {other.shape[-1]}; encode both with the same "
                    "text encoder"
                )
        tokens = torch.lcm(torch.tensor(a.shape[1]), torch.tensor(b.shape[1])).item()
        text = [_rows(x.repeat(1, tokens // x.shape[1], 1), batch) for x in (a, b)]
        options = {**of_a, HALF: whole(half_of(of_a), half_of(of_b))}
        if pooled[0] is not None and pooled[1] is not None:
            options["pooled_output"] = torch.cat([_rows(x, batch) for x in pooled])
        pairs.append([torch.cat(text), options])
    return pairs


TEXTS = ("pooled_output", HALF)


def half_of(options: dict) -> tuple[str, ...]:
    """The mark of a conditioning; () for one that is of no edit."""
    return tuple(options.get(HALF, ()))


def whole(source: tuple[str, ...], target: tuple[str, ...]) -> tuple[str, ...]:
    """The mark of two conditionings in one: ("both", the texts) for the two halves of one edit, else ()."""
    both = (source[:1], target[:1]) == (("source",), ("target",)) and source[1:] == target[1:]
    return ("both", *source[1:]) if both else ()


def _rows(x: Tensor, batch: int) -> Tensor:
    return comfy.utils.repeat_to_batch_size(x, batch)


def _alike(a, b) -> bool:
    """Whether two values of a conditioning do the same; ControlNets by what they hold, as each node makes its own."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, comfy.controlnet.ControlBase):
        return _alike(vars(a), vars(b))
    try:
        return bool(a == b)
    except Exception:  # what cannot be compared counts as different
        return False
