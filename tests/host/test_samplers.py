"""Whatever the host samples with, through the nodes that sample: docs/samplers.md, each cell an oracle or the error.

`make docs ARGS=tables` runs this with STEER_WRITE=1, which writes the page; else it has to be what was found, cell by
cell. A host that lacks some of its rows has to agree on the others.
"""

import os
import re
from functools import cache, cached_property

import comfy.samplers
import pytest
import torch
from steer.lab.comfy.runs import host_guider, noise_of, run, sigmas_of
from steer.lab.models import stock
from steer.lab.package import ROOT
from steer.nodes.blended_diffusion import SteerBlendedSampler
from steer.nodes.guidance import SteerCFGGuider
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.langevin import SteerLangevinSampler
from steer.nodes.prompt_to_prompt import SteerPromptEdit, SteerPromptToPromptGuider
from steer.nodes.repaint import SteerRePaintSampler
from steer.nodes.trajectory_blend import SteerTrajectoryBlendSampler
from steer.tests.cases import checkered
from steer.tests.host_models import FLOW, hole, mean_conditioning, relative, with_law
from steer.tests.sampling import SAMPLERS, SAMPLINGS, SCHEDULERS, Row, every_row, planted

PAGE = ROOT / "docs" / "samplers.md"
SHAPE = (2, 4, 8, 8)
SOURCE = noise_of(SHAPE, 5)
MASK = hole(2, 8, 8)
EVERYTHING, NOTHING = torch.ones_like(MASK), torch.zeros_like(MASK)
MEANS = 3.0, -0.5, 0.25
POSITIVE, NEGATIVE, EMPTY = map(mean_conditioning, MEANS)
CFG = 3.0
EULER = comfy.samplers.sampler_object("euler")
TABLES = SAMPLERS, SCHEDULERS, SAMPLINGS
ROWS = every_row()
HOSTS_OWN = "not the host's own guider either"
ADAPTIVE = "dpm_adaptive", "SamplerDPMAdaptative"
HEAD = """\
# What the host samples with, through the nodes that sample

Found by `tests/host/test_samplers.py`, with whatever samplers, schedulers and ModelSamplings the host has, its nodes at
their defaults, on planted models, whose estimates are known in closed form: samplers and schedulers on an eps model and
on a flow, schedulers and ModelSamplings with euler. On ComfyUI 0.3.64, 0.3.75, 0.8.0 (fewer rows) and 0.33.0.
+ works: what is listed below was shown. A number: what the node says instead, with N for its numbers, before the model
runs (where a sampler goes between the levels, when it does), or what there is to know. -: a sampler for other models,
with which ComfyUI's own guider does not run here either."""
CELLS: dict[tuple[str, Row], str] = {}
ORACLES: dict[str, tuple] = {}


def oracle(column, text, *tables):
    """Registers the check of a column; `text` is what it shows, on the page."""

    def register(check):
        ORACLES[column] = text, check, tables or TABLES
        return check

    return register


class Sampling:
    """A row made: a planted model, a sampler and its sigmas."""

    def __init__(self, row: Row):
        self.row = row
        model = with_law(loaded()[0], row.law or FLOW)
        made = row.make(model)
        self.rows: list[int] = []
        self.model = planted(made if row.table == SAMPLINGS else model, self.rows.append)
        self.sampler = made if row.table == SAMPLERS else EULER
        self.sigmas = made if row.table == SCHEDULERS else sigmas_of(self.model, 6)

    def sample(self, guider, sampler=None, latent=None, mask=None, noise=None):
        """As SamplerCustomAdvanced with RandomNoise, always of the same seed. Steer's nodes leave the SIGMAS alone."""
        torch.manual_seed(3)
        sampler, sigmas = sampler or self.sampler, self.sigmas.clone()
        out = run(guider, sampler, sigmas, noise_of(SHAPE) if noise is None else noise, latent, mask)
        if any(type(each).__module__.startswith("steer") for each in (guider, sampler)):
            assert torch.equal(sigmas, self.sigmas)
        self.rows.clear()
        return out

    def guider(self, positive=POSITIVE, negative=NEGATIVE, cfg=CFG):
        return host_guider(self.model, positive, negative, cfg)

    @cached_property
    def plain(self):
        return self.sample(self.guider())

    @cached_property
    def plain_with_empty(self):
        return self.sample(self.guider(negative=EMPTY))

    @cached_property
    def inverted(self):
        """(LATENT, NOISE, inversion), report"""
        out = SteerDDIMInversion.execute(self.guider(cfg=1.0), self.sigmas, {"samples": SOURCE}, 20, 1e-4)
        self.rows.clear()
        return out.args, out.ui["text"][0]


@cache
def loaded():
    return stock.load()


@cache
def sampling(row: Row) -> Sampling:
    return Sampling(row)


def same(ours, expected, tolerance=1e-5):
    assert torch.isfinite(expected).all() and relative(ours, expected) < tolerance


def outside(latent):
    return latent[(MASK == 0).expand(SHAPE)]


def inside(latent):
    return latent[(MASK == 1).expand(SHAPE)]


def edited(here, out):
    """Outside the source at the last level, inside another picture."""
    kept, source, end = outside(out), outside(SOURCE), float(here.sigmas[-1])
    if end == 0.0:
        torch.testing.assert_close(kept, source, rtol=1e-6, atol=1e-6)
    else:
        noise = here.model.model.process_latent_in(kept - source)
        assert float(noise.std()) == pytest.approx(end, rel=0.2)
    assert torch.isfinite(out).all() and relative(inside(out), inside(SOURCE)) > 1e-2


def cfg_guider(here, start=0.0, end=1.0, negative_scale=1.0, empty=None):
    return SteerCFGGuider.execute(here.model, POSITIVE, NEGATIVE, CFG, start, end, negative_scale, empty)[0]


@oracle("CFG Guider", "equals the host's CFGGuider")
def two_terms(here):
    same(here.sample(cfg_guider(here)), here.plain)


@oracle(
    "three terms", "at `negative_scale` 0 equals the host's CFGGuider with `empty` as its negative, at 1 it does not"
)
def three_terms(here):
    same(here.sample(cfg_guider(here, negative_scale=0.0, empty=EMPTY)), here.plain_with_empty)
    further = here.sample(cfg_guider(here, negative_scale=1.0, empty=EMPTY))
    assert relative(further, here.plain_with_empty) > 1e-3


class Interval(comfy.samplers.CFGGuider):
    """The host's guider, whose cfg is 1 outside an interval."""

    def __init__(self, model, start, end):
        super().__init__(model)
        self.levels = [model.get_model_object("model_sampling").percent_to_sigma(percent) for percent in (end, start)]

    def predict_noise(self, x, timestep, *args, **kwargs):
        low, high = self.levels
        self.set_cfg(CFG if low <= float(timestep.max()) <= high else 1.0)
        return super().predict_noise(x, timestep, *args, **kwargs)


@oracle("interval", "equals the host's CFGGuider at cfg 1 outside, without `empty` and with it")
def interval(here):
    for negative, given in ((NEGATIVE, {}), (EMPTY, {"negative_scale": 0.0, "empty": EMPTY})):
        expected = Interval(here.model, 0.3, 0.7)
        expected.set_conds(POSITIVE, negative)
        expected = here.sample(expected)
        same(here.sample(cfg_guider(here, 0.3, 0.7, **given)), expected)


@oracle("Blended", "outside the mask the source, inside edited; all masked: the inner sampler, bit for bit")
def blended(here):
    sampler = SteerBlendedSampler.execute(here.sampler, 0)[0]
    edited(here, here.sample(here.guider(), sampler, SOURCE, MASK))
    assert torch.equal(here.sample(here.guider(), sampler, mask=EVERYTHING), here.plain)


@oracle("Trajectory Blend", "outside the mask the source bit for bit, inside edited; an empty mask is the source, bit "
        "for bit")  # fmt: skip
def trajectory_blend(here):
    latent, noise, inversion = here.inverted[0]
    noise, latent = noise.generate_noise(latent), latent["samples"]
    sampler = SteerTrajectoryBlendSampler.execute(here.sampler, inversion)[0]
    out = here.sample(here.guider(), sampler, latent, MASK, noise)
    edited(here, out)
    assert torch.equal(outside(out), outside(latent))
    assert torch.equal(here.sample(here.guider(), sampler, latent, NOTHING, noise), latent)


@oracle("RePaint", "outside the mask the source, inside edited; all masked, once and without noise: the host's euler",
        SCHEDULERS, SAMPLINGS)  # fmt: skip
def repaint(here):
    edited(here, here.sample(here.guider(), SteerRePaintSampler.execute(2, 2, 1.0)[0], SOURCE, MASK))
    once = here.sample(here.guider(), SteerRePaintSampler.execute(1, 1, 0.0)[0], mask=EVERYTHING)
    same(once, here.plain, 1e-4)


@oracle("Langevin", "outside the mask the source, inside edited; all masked, with one call a step: the host's euler",
        SCHEDULERS, SAMPLINGS)  # fmt: skip
def langevin(here):
    edited(here, here.sample(here.guider(), SteerLangevinSampler.execute(2, 0.5)[0], SOURCE, MASK))
    once = here.sample(here.guider(), SteerLangevinSampler.execute(1, 0.5)[0], mask=EVERYTHING)
    same(once, here.plain, 1e-4)


@cache
def edit():
    """(source, target, edit): prompts of the planted model, as Prompt Edit gives them."""
    source, target, change = SteerPromptEdit.execute(
        loaded()[1], "a red circle on a blue background", "a green circle on a blue background", "auto", ""
    ).args
    source, target = (
        [[torch.full_like(text, mean), also] for text, also in prompt]
        for prompt, mean in ((source, MEANS[0]), (target, 2.0))
    )
    return source, target, change


@oracle("Prompt-to-Prompt", "the source is the plain run of its seed, and the target too, since a planted model has no "
        "attention to share")  # fmt: skip
def prompt_to_prompt(here):
    source, target, change = edit()
    guider = SteerPromptToPromptGuider.execute(here.model, source, target, NEGATIVE, CFG, change, 0.8, 0.4).args[0]
    first, second = here.sample(guider).chunk(2)
    same(first, here.plain)
    plain = here.sample(here.guider(target))
    if here.row.name not in ADAPTIVE:
        return same(second, plain)
    same(second, plain, 1e-2)
    return "works; the target takes the steps that the sampler chooses for the source, and is its plain run to 1e-2"


@oracle("on an inversion", "the source is the picture bit for bit, the target the plain run from its noise")
def direct_inversion(here):
    (latent, noise, inversion), _ = here.inverted
    noise, latent, (source, target, change) = noise.generate_noise(latent), latent["samples"], edit()
    guider = SteerPromptToPromptGuider.execute(
        here.model, source, target, NEGATIVE, CFG, change, 0.8, 0.4, inversion=inversion
    ).args[0]
    first, second = here.sample(guider, latent=latent, noise=noise).chunk(2)
    assert torch.equal(first, latent)
    same(second, here.sample(here.guider(target), latent=latent, noise=noise))


@oracle("Inversion", "sampled again by euler it is the picture, to 1e-2 of its std, or the report says that the "
        "inversion does not hold, and only then", SCHEDULERS, SAMPLINGS)  # fmt: skip
def inversion(here):
    (latent, noise, _), report = here.inverted
    back = here.sample(here.guider(cfg=1.0), EULER, latent["samples"], noise=noise.generate_noise(latent))
    error, amiss = float((back - SOURCE).abs().max() / SOURCE.std()), "does not hold" in report
    assert error > 1e-3 if amiss else error < 1e-2, (error, report)
    return "works, and its report says that the inversion does not hold" if amiss else ""


def columns_of(table: str) -> list[str]:
    return [column for column, (*_, tables) in ORACLES.items() if table in tables]


CASES = [case for table in TABLES
         for case in checkered(columns_of(table), [row for row in ROWS if row.table == table], 4)]  # fmt: skip


def said(column, row) -> str:
    """Nothing where the oracle held, or what the node says instead, with N for its numbers."""
    here, check = sampling(row), ORACLES[column][1]
    try:
        assert torch.isfinite(here.plain).all()
    except Exception:
        return HOSTS_OWN
    here.rows.clear()
    try:
        return check(here) or ""
    except ValueError as error:
        assert str(error).startswith("Steer"), error
        # where a sampler goes between the levels shows only when it does
        assert not here.rows or check is direct_inversion, f"{len(here.rows)} calls before {error}"
        return re.sub(r"\b\d+(\.\d+)?(e[+-]?\d+)?\b", "N", str(error).partition(": ")[2])


@pytest.mark.parametrize("column, row", CASES, ids=lambda value: str(value))
def test_works_or_says_why_not(column, row):
    CELLS[column, row] = said(column, row)
    if not os.environ.get("STEER_WRITE"):
        assert CELLS[column, row] == written(column, row)
    if column in ("CFG Guider", "three terms", "interval") and row.table == SAMPLINGS:
        assert not CELLS[column, row]  # sigmas of the model's own, which the host's guider takes


def page() -> str:
    """docs/samplers.md"""
    notes: list[str] = []

    def sign(text: str) -> str:
        if text and text != HOSTS_OWN and text not in notes:
            notes.append(text)
        return "+" if not text else "-" if text == HOSTS_OWN else str(notes.index(text) + 1)

    def cell(column, name) -> str:
        signs = {row.law: sign(said) for (at, row), said in CELLS.items() if (at, row.name) == (column, name)}
        return signs.popitem()[1] if len(set(signs.values())) == 1 else ", ".join(map(" ".join, signs.items()))

    lines = HEAD.splitlines()
    for table in TABLES:
        columns = columns_of(table)
        alike: dict[tuple, list] = {}
        for name in dict.fromkeys(row.name for row in ROWS if row.table == table):
            alike.setdefault(tuple(cell(column, name) for column in columns), []).append(f"`{name}`")
        lines += ["", f"## {table}", "", "| | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
        lines += [f"| {', '.join(names)} | " + " | ".join(cells) + " |" for cells, names in alike.items()]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(notes, 1)), "", "What each + has shown:", ""]
    lines += [f"- {column}: {text}" for column, (text, *_) in ORACLES.items()]
    return "\n".join(lines) + "\n"


@cache
def written_signs() -> dict[tuple, str]:
    """What stands in the page at (table, row's name, column)."""
    signs, table, columns = {}, "", []
    for line in PAGE.read_text().splitlines():
        table = line[3:] if line.startswith("## ") else table
        head, *cells = line.strip("| ").split(" | ")
        if line.startswith("| | "):
            columns = [head, *cells]
        if line.startswith("| `"):
            for name in re.findall("`(.*?)`", head):
                signs |= {(table, name, column): sign for column, sign in zip(columns, cells, strict=True)}
    return signs


def written(column, row) -> str:
    """What the page says of a cell, in the words of `said`."""
    sign = written_signs()[row.table, row.name, column]
    if " " in sign:  # one for each law
        sign = dict(part.split() for part in sign.split(", "))[row.law]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", PAGE.read_text(), re.MULTILINE))
    return notes[sign] if sign.isdigit() else {"+": "", "-": HOSTS_OWN}[sign]


def by_name(text: str) -> dict[tuple, str]:
    """What a page says of each row, in words."""
    notes, cells, table = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)), {}, ""
    for line in text.splitlines():
        table = line if line.startswith("## ") else table
        if line.startswith("| `"):
            names, _, signs = line.partition(" | ")
            signs = re.sub(r"\d+", lambda number: notes[number[0]], signs)
            cells.update({(table, name): signs for name in re.findall("`(.*?)`", names)})
    return cells


def test_the_page_says_what_was_found():
    if len(CELLS) < len(CASES):
        pytest.skip("only a part of the matrix was run, or a cell failed")
    if os.environ.get("STEER_WRITE"):
        PAGE.write_text(page())
    written, found = PAGE.read_text(), page()
    assert by_name(found).items() <= by_name(written).items()
    if len(by_name(found)) == len(by_name(written)):  # not a host that lacks some
        assert found == written
