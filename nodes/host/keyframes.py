"""LoRA hooks with keyframes, which the host can only follow down the noise levels, for runs that also go up."""


class Keyframes:
    """Sets a run's scheduled hooks to the state in which sampling down to a level leaves them."""

    def __init__(self, guider, model_options: dict, sigmas: list[float]):
        conds = [cond for entries in guider.conds.values() for cond in entries if cond.get("hooks")]
        self._keyframes = {id(hook.hook_keyframe): hook.hook_keyframe for cond in conds for hook in cond["hooks"].hooks
                           if hook.hook_keyframe.keyframes}  # fmt: skip
        self._model, self._options, self._sigmas, self._last = guider.inner_model, model_options, sigmas, 0.0

    def go_to(self, sigma: float) -> None:
        """To be called before each model call."""
        if self._keyframes and sigma > self._last:
            self._rewind(sigma)
        self._last = sigma

    def leave(self) -> None:
        """To be called at the end of a run that went up: the host's reset for the next run keeps the last level."""
        for keyframes in self._keyframes.values():
            keyframes.prepare_current_keyframe(0.0, self._options["transformer_options"])

    def _rewind(self, sigma: float) -> None:
        before = [keyframes.strength for keyframes in self._keyframes.values()]
        for keyframes in self._keyframes.values():
            keyframes.reset()
            for level in self._sigmas:
                if level > sigma:
                    keyframes.prepare_current_keyframe(level, self._options["transformer_options"])
        if before != [keyframes.strength for keyframes in self._keyframes.values()]:
            patchers = self._options.get("multigpu_clones", {"": self._model.current_patcher})
            for patcher in patchers.values():
                patcher.clear_cached_hook_weights()
