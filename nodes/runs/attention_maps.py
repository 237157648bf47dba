"""Recording the attention of the host's runs, and putting a recording into another run."""

from dataclasses import dataclass, replace

from torch import Tensor

from ...attention.attention_maps import Recorder, Recording
from ...attention.core import Attention, Term, nearest
from ...attention.layers import Site
from ...attention.prompt_to_prompt import Edit, Timing, edited, shared_layout
from ...samplers.window import Window
from ..host import Run, attention, checks, conditioning, guiders, law, length_of, log


class Recorded:
    """Puts what it sees into a recording."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def acts(self, kind: str, sigma: float) -> bool:
        return kind != "self" or self.recorder.keeps(kind, sigma)

    def see(self, rows: list[Attention], site: Site) -> None:
        if site.policy.heats(site) or site.policy.shares(site):
            self.recorder.add(rows, site)


SAID = "attention of %d steps: %.1f MiB of memory, not on the GPU"


@dataclass
class Capturing:
    """Another SAMPLER, with the attention under the positive conditioning recorded: the method of one run.

    It leaves the recording.
    """

    sampler: object
    recorder: Recorder
    recording: Recording | None = None

    def __call__(self, run: Run) -> Tensor:
        run.check_every_call()
        with run.errors():
            watch = Watch(run, self.recorder)
            samples = run.sample(self.sampler, watch, watched=True)
            watch.correct()
            tokens = length_of(watch.positive["cross_attn"], watch.positive)
            recording = self.recorder.finish(tuple(watch.levels), tokens)
            self.recording = replace(recording, texts=own_texts(watch.positive))
        return samples


def own_texts(positive: dict) -> tuple[str, ...]:
    """The text that was sampled, of an edit's halves; both where it was both, none where it was no edit's."""
    half, *texts = conditioning.half_of(positive) or ("both",)
    return tuple({"source": texts[:1], "target": texts[1:]}.get(half, texts))


class Watch:
    """Answers a sampler's calls, with the attention recorded."""

    def __init__(self, run: Run, recorder: Recorder):
        self._recorder, self._ahead = recorder, run.levels[:-1]
        if "source" in run.guider.conds:
            raise ValueError(
                "the guider is SteerEditGuider, of two prompts at once, and attention is recorded for one; connect "
                "SteerCFGGuider or CFGGuider"
            )
        positives = run.guider.conds.get("positive", [])
        if len(positives) != 1 or "area" in positives[0]:
            raise ValueError(
                f"the guider has {len(positives)} positive conditionings (or one with an area); attention is recorded "
                "for one prompt over the whole picture"
            )
        self.positive, self.levels, self._said = positives[0], [], 0
        self._edits = attention.AttentionEdits(run.model).on(positives, looks=[Recorded(recorder)])

    def __call__(self, denoise: guiders.Call, x: Tensor, sigma: float) -> Tensor:
        denoised = denoise(x, options=self._edits.options(denoise.options))
        self.levels.append(sigma)
        self._check_memory()
        return denoised

    def correct(self) -> None:
        """Says what was kept where it is not what was said: the sampler called the model between its levels."""
        kept = self._recorder.nbytes()
        if kept != self._said:
            log.info(SAID, len(set(self.levels)), kept / 2**20)

    def _check_memory(self) -> None:
        ahead = set(self._ahead).difference(self.levels)
        needed = self._recorder.ahead(ahead)
        if not self._said and self._recorder.nbytes():
            self._said = self._recorder.nbytes() + needed
            log.info(SAID, len(ahead) + 1, self._said / 2**20)
        free = checks.free_ram()
        if needed > free:
            raise ValueError(
                f"the queries of the {len(ahead)} steps to come need {needed / 2**30:.1f} GiB of memory and "
                f"{free / 2**30:.1f} are free; lower cross_end and self_end (0 keeps only the maps for heatmaps), or "
                "the size or batch"
            )


def capturing(model, sampler, cross_end: float, self_end: float) -> Capturing:
    """The method for this model, which records queries until these shares of the run; none where none can be used."""
    at = law.sigma_at(model)
    if not attention.AttentionEdits(model.model).pairs:
        cross_end = self_end = 0.0
    return Capturing(sampler, Recorder(Window.until(at(cross_end)), Window.until(at(self_end))))


class Injected:
    """An edit whose source is a recording."""

    def __init__(self, node: str, recording: Recording, edit: Edit, timing: Timing):
        self.node, self.recording, self.edit, self.timing, self.acts = node, recording, edit, timing, timing.acts

    def apply(self, rows: list[Attention], site: Site) -> list[Attention] | None:
        if site.kind == "self" and not site.policy.shares(site):
            return None
        (target,) = rows
        source = self._source(target, site)
        if site.kind == "self":
            return [shared_layout(source, target)]
        return [edited((source,), target, self.edit, self.timing.mixed(site.sigma, target.v.device))]

    def _source(self, target: Attention, site: Site) -> Term:
        """The recorded softmax, for each row of the target."""
        recorded = self.recording.term(site)
        if recorded is None:
            raise ValueError(
                f"{self.node}: the recording holds nothing of {site.layer} at sigma {site.sigma:.5g}; {SAME_RUN}"
            )
        q, k = (x.to(target.v).expand(len(target.v), *x.shape[1:]) for x in (recorded.q, recorded.k))
        if q.shape[1:] != target.terms[0].q.shape[1:]:
            raise ValueError(
                f"{self.node}: the recording is of {self.recording.latent} latents, this run is not; {SAME_RUN}"
            )
        return Term(q, k)


SAME_RUN = "use the model, the sigmas, the sampler and the latent size of the recorded run"


class InjectedTarget(attention.Mark):
    """The target of the edit, which attends as recorded."""

    key = conditioning.HALF

    def __init__(self, injected: Injected):
        self.injected = injected

    def edit(self, half) -> Injected | None:
        text = self.injected.edit.target.text
        return self.injected if half and (half[0], half[2]) == ("target", text) else None

    def check(self, conds: list[dict], noise: Tensor, sigmas: Tensor) -> None:
        if any("area" in cond or cond.get("set_area_to_bounds") for cond in conds):
            raise ValueError(
                "the edit's target has an area, and attention was recorded over the whole picture; remove the area"
            )
        recording, acts = self.injected.recording, self.injected.acts
        batch = next(iter(recording.maps.values())).shape[0]
        if batch not in (1, noise.shape[0]) or tuple(noise.shape[-2:]) != recording.latent:
            raise ValueError(
                f"the recording is of {batch} latents of {recording.latent}, this run of {noise.shape[0]} of "
                f"{tuple(noise.shape[-2:])}; {SAME_RUN}"
            )
        acting = [s for s in sigmas[:-1].tolist() if acts("cross", s) or acts("self", s)]
        missing = [sigma for sigma in acting if nearest(recording.sigmas, sigma) is None]
        if missing:
            raise ValueError(f"sigma {missing[0]:.5g} was not recorded; {SAME_RUN}")


def with_recording(model, node: str, recording: Recording, edit: Edit, timing: Timing):
    """A clone of the model that attends as recorded, under the edit's target conditioning."""
    return attention.with_marked_edits(model, node, InjectedTarget(Injected(node, recording, edit, timing)))
