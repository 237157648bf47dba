"""DDIM inversion inside a run of the host, and the NOISE that starts another run where it leads."""

from dataclasses import dataclass

from torch import Tensor

from ...samplers.ddim import ddim
from ...samplers.inversion import Inversion, invert, largest_error
from ...samplers.inversion_report import holds, report
from ..host import Run, guidance_of, log


@dataclass
class Inverting:
    """Walks the source up instead of sampling down: the method of one run, which leaves its inversion and report."""

    refine: int
    tolerance: float
    check: bool
    inversion: Inversion | None = None
    report: str = ""

    def __call__(self, run: Run) -> Tensor:
        with run.errors():
            check_invertible(run)
        count = len(run.sigmas) - 1
        mib = run.known.numel() * 4 * (count + 1) / 2**20
        log.info("%s: %d steps; the trajectory takes %.1f MiB of memory, not on the GPU", run.node, count, mib)
        total = count * (2 if self.check else 1)
        levels, latents = [], [run.known.float().cpu()]
        steps = invert(run.denoise, run.known, run.sigmas, run.law, self.refine, self.tolerance)
        for level in run.shown(steps, count, of=total):
            latents.append(level.x.float().cpu())
            levels.append(level._replace(x=None, denoised=None))
        name = type(run.model.latent_format).__name__
        inversion = Inversion(tuple(run.sigmas), tuple(reversed(latents)), run.law, name, run.from_top)
        errors = round_trip(run, level.x, inversion) if self.check else None
        steady = holds(inversion, levels, errors) or answers_alike(run, level.x)
        run.keyframes.leave()
        guidance = guidance_of(run.guider, run.options)
        self.report = report(inversion, levels, errors, self.tolerance, guidance, steady)
        self.inversion = inversion
        return run.known


def round_trip(run: Run, x: Tensor, inversion: Inversion) -> list[float]:
    """How far sampling down from x is from the inversion, at each level."""
    steps, count = ddim(run.denoise, x, run.sigmas, run.law), len(run.sigmas) - 1
    shown = run.shown(steps, count, first=count, of=2 * count)
    return [
        largest_error(step.x, latent, run.law, step.sigma)
        for step, latent in zip(shown, inversion.latents[1:], strict=True)
    ]


def check_invertible(run: Run) -> None:
    """ValueError for a run that cannot be walked up."""
    run.check()
    run.check_every_call()
    if getattr(run.options.get("context_handler"), "freenoise", False):
        raise ValueError(
            "the model has context windows with freenoise, which shuffles the noise of a run before its first step, so "
            "the inverted noise would not come back to the picture; turn freenoise off in their node"
        )
    if not run.known.any():
        raise ValueError("latent_image is empty (all zero); encode the picture to invert")
    if run.sigmas[-1] != 0.0:
        raise ValueError(
            f"the sigmas end at {run.sigmas[-1]:g}, but a picture is inverted from 0 up; "
            "use the whole end of the schedule (the lower half of a split, SteerSDEditSigmas)"
        )


def answers_alike(run: Run, x: Tensor) -> bool:
    """Whether the same latent gets the same answer twice, up to a GPU's rounding."""
    first, second = (run.denoise(x, run.sigmas[0]) for _ in range(2))
    return bool((second - first).abs().max() <= 1e-3 * first.abs().max())
