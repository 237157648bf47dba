"""Classifier guidance: a noise-aware classifier on latents, and the loss it makes."""

import folder_paths
from comfy_api.latest import io

from ..files.classifier_file import read_classifier
from ..files.safetensors import EXTENSION
from .host import add_model_folder
from .runs.classifier import ClassifierLoss
from .schema import where_known
from .wires import SteerClassifier, SteerLoss

LOADER, LOSS = "SteerClassifierLoader", "SteerClassifierLoss"
FOLDER = "classifiers"
add_model_folder(FOLDER, EXTENSION)


def classifier_names() -> list[str]:
    return folder_paths.get_filename_list(FOLDER)


class SteerClassifierLoader(io.ComfyNode):
    """Reads a classifier that knows the noise level (arXiv:2105.05233, section 4)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LOADER,
            display_name="Load Classifier (Steer)",
            category="Steer/losses",
            description="A classifier of noisy latents, from models/classifiers.",
            **where_known(search_aliases=["classifier guidance", "adm"]),
            inputs=[
                io.Combo.Input(
                    "classifier_name",
                    options=classifier_names(),
                    tooltip="A safetensors file in models/classifiers, as this package's trainer writes them.",
                )
            ],
            outputs=[SteerClassifier.Output(tooltip="For Classifier Loss.")],
        )

    @classmethod
    def execute(cls, classifier_name) -> io.NodeOutput:
        if classifier_name not in classifier_names():
            raise ValueError(
                f"classifier_name {classifier_name!r} is not in models/classifiers, which holds "
                f"{', '.join(classifier_names()) or 'no safetensors file'}"
            )
        return io.NodeOutput(read_classifier(folder_paths.get_full_path_or_raise(FOLDER, classifier_name)))


class SteerClassifierLoss(io.ComfyNode):
    """`-log p(label | x, sigma)` (arXiv:2105.05233, alg. 2)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=LOSS,
            display_name="Classifier Loss (Steer)",
            category="Steer/losses",
            description="How unlikely a label is, by a classifier of noisy latents. For Gradient Guider: at scale 1 "
            "and cfg 1 the result is a sample of the label, as far as the classifier is right.",
            **where_known(search_aliases=["classifier guidance", "adm"]),
            inputs=[
                SteerClassifier.Input("classifier", tooltip="From Load Classifier; it has to be of the model's kind."),
                io.String.Input("label", tooltip="One of the classifier's labels; a wrong one lists them."),
            ],
            outputs=[SteerLoss.Output(tooltip="For Gradient Guider.")],
        )

    @classmethod
    def execute(cls, classifier, label) -> io.NodeOutput:
        return io.NodeOutput(ClassifierLoss.of(classifier, classifier.index(label)))


NODES = [SteerClassifierLoader, SteerClassifierLoss]
