"""The commands that count the code's shape and list its messages say what a small package is."""

from steer.lab.figures import figures
from steer.lab.messages import messages

SOURCE = """
class One(comfy.samplers.Sampler):
    def sample(self, guider, sigmas, noise, latent):
        if not sigmas:
            raise ValueError(f"{self.node}: sigmas has {len(sigmas)} levels; " "connect some")
        raise TypeError("not one of these")
"""


def small(tmp_path):
    for folder in ("nodes", "samplers", "attention", "pictures", "files"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nodes" / "one.py").write_text(SOURCE)
    return tmp_path


def test_figures(tmp_path):
    counted = figures(small(tmp_path))
    assert counted["lines of nodes/"] == SOURCE.count("\n") and counted["names in the facade"] == 0
    assert counted["subclasses of the host's Sampler"] == counted["classes with a sampler's or guider's `sample`"] == 1


def test_messages(tmp_path):
    assert messages(small(tmp_path)) == ["sigmas has {} levels; connect some"]
