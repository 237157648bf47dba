"""A classifier as a loss on noisy latents."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...samplers.classifier import Classifier
from ...samplers.gradient_guidance import Loss
from ..host import Run, patcher_of


@dataclass(frozen=True)
class ClassifierLoss:
    """`-log p(label | x, sigma)` of the noisy latent."""

    classifier: Classifier
    index: int
    patchers: tuple

    noisy = True
    by_picture = ()

    @classmethod
    def of(cls, classifier: Classifier, index: int):
        return cls(classifier, index, (patcher_of(classifier.network),))

    def memory(self, shape: tuple[int, ...]) -> float:
        return 0.0

    def start(self, run: Run, latent_format, differentiable: Callable) -> Loss:
        trained_for = self.classifier.law, self.classifier.latent_format
        used = run.law, type(latent_format).__name__
        if trained_for != used:
            raise ValueError(
                f"the classifier is of a {trained_for[0].name} model with {trained_for[1]} latents, and this model is "
                f"a {used[0].name} one with {used[1]} latents; use one that was trained for this model"
            )
        self.classifier.check_shape(run.known)
        network = differentiable(self.patchers[0])

        def loss(x: Tensor, sigma: float) -> Tensor:
            return network(lambda: -self.classifier.log_probs(x, sigma)[:, self.index])

        return loss
