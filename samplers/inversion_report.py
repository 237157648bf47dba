"""What an inversion came to, for people: its cost, its round trip, and what is wrong, if anything is."""

from collections.abc import Iterator, Sequence

from .inversion import Inversion, Level, spread

MISSED = 0.1
"""The error of the round trip, in units of the latents' std, above which the picture does not come back."""
HOLDS, DOES_NOT_HOLD = "The inversion holds", "The inversion does not hold"
UNCHECKED = "The inversion was not sampled back, so its error is not known; switch check on to see it."
UNSOLVED = 10.0
"""The residual, in units of the tolerance, above which a step counts as not solved."""


def report(
    inversion: Inversion,
    levels: Sequence[Level],
    errors: Sequence[float] | None,
    tolerance: float,
    guidance: str = "",
    steady: bool = True,
) -> str:
    """The report: the verdict, what it rests on and the worst step; then, after an empty line, every step down.

    `errors`: of the round trip, by step down; None where it was not made. `guidance`: what the run does that may leave
    a step without a solution, "" for a single prompt. `steady`: whether the model answers the same twice.
    """
    steps, calls, missing = (
        len(levels),
        sum(level.calls for level in levels),
        unsolved(inversion, levels, UNSOLVED * tolerance),
    )
    well = holds(inversion, levels, errors)
    back = "" if errors is None else f"the largest error is {_share(inversion, errors):.2g} of the latents' std."
    lines: list[str] = []
    if not well:
        reasons = causes(levels, missing, guidance) if steady else [UNSTEADY]
        lines.append(f"{DOES_NOT_HOLD}: {'. Besides, '.join(reasons)}.")
        lines += [f"Sampled back, {back}"] if back else []
    else:
        lines.append(f"{HOLDS}: sampled back, {back}" if back else UNCHECKED)
        if missing and (errors is None or _share(inversion, errors) > tolerance):
            lines.append(
                f"Not solved to the tolerance {tolerance:g}: {len(missing)} of {steps} steps, the worst {missing[0]}. "
                "More refine or more steps come nearer to it, as far as the model's own rounding lets them."
            )
    lines.append(f"Inverted to sigma {inversion.sigmas[0]:.4g} in {steps} steps, {calls} model calls.")
    rows = [_row(inversion, levels[-1 - index], index, errors) for index in range(steps)]
    worst = _worst(levels, errors)
    lines += [] if worst is None else [f"The worst step: {rows[worst]}"]
    return "\n".join([*lines, "", *rows])


def _row(inversion: Inversion, level: Level, index: int, errors: Sequence[float] | None) -> str:
    row = f"{level.sigma:.4g} -> {inversion.sigmas[index + 1]:.4g}: {level.calls} calls"
    if level.residual is not None:
        row += f", residual {float(level.residual.max()):.1e}"
    return row if errors is None else f"{row}, round trip {errors[index]:.1e}"


def _worst(levels: Sequence[Level], errors: Sequence[float] | None) -> int | None:
    """The step down with the largest residual, or without residuals the one that adds most to the round trip."""
    residuals = [float(level.residual.max()) for level in reversed(levels) if level.residual is not None]
    if len(residuals) == len(levels):
        of_steps = residuals
    elif errors is not None:
        of_steps = [after - before for before, after in zip([0.0, *errors], errors, strict=False)]
    else:
        return None
    return max(range(len(of_steps)), key=of_steps.__getitem__)


def holds(inversion: Inversion, levels: Sequence[Level], errors: Sequence[float] | None) -> bool:
    """Whether sampling leads back to the picture: by its round trip, and without one by how the steps were solved."""
    return not unsolved(inversion, levels, MISSED) if errors is None else _share(inversion, errors) <= MISSED


def _share(inversion: Inversion, errors: Sequence[float]) -> float:
    return errors[-1] / spread(inversion.latents[-1])


def unsolved(inversion: Inversion, levels: Sequence[Level], limit: float) -> list[str]:
    """The steps whose residual is above the limit, the worst first; plain inversion has none."""
    pairs = zip(levels, inversion.sigmas[::-1], strict=False)
    solved = [(float(level.residual.max()), level, below) for level, below in pairs if level.residual is not None]
    return [
        f"{level.sigma:.4g} -> {below:.4g} (residual {residual:.1e} after {level.calls} calls)"
        for residual, level, below in sorted(solved, key=lambda step: -step[0])
        if residual > limit
    ]


UNSTEADY = (
    "the model answers the same latent in another way each time: a patch draws noise or remembers earlier calls (token "
    "merging, APG's momentum); remove it"
)


def causes(levels: Sequence[Level], missing: Sequence[str], guidance: str) -> Iterator[str]:
    """Why an inversion does not hold though the model answers the same twice, and what would help."""
    if guidance:
        yield (
            f"{guidance}, and then a step may have no solution; invert without that, at cfg 1 with the prompt of the "
            "picture, and edit with null-text or with that prompt as the negative"
        )
    if all(level.residual is None for level in levels):
        yield "plain inversion solves no step exactly; set refine (5 is plenty), or take more steps"
    elif missing:
        yield f"the step {missing[0]} is not solved; make it shorter (more steps, another scheduler), or raise refine"
    elif not guidance:
        yield (
            "each step is solved, and its small error grows on the way down; lower the tolerance, or run the model at "
            "a higher precision (--fp32-unet)"
        )
