"""Saving and loading inversions through the nodes: folders, names, corrupted files, interrupts."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import comfy.samplers
import folder_paths
import nodes
import pytest
import torch
from steer.files import inversion_file
from steer.lab.comfy.runs import encode, host_guider, noise_of, run, sigmas_of
from steer.lab.package import ROOT
from steer.nodes.inversion import SteerDDIMInversion
from steer.nodes.inversion_file import SteerLoadInversion, SteerSaveInversion, inversion_files
from steer.nodes.null_text import SteerNullText
from steer.samplers.noise_law import RECTIFIED_FLOW
from steer.tests import oracles
from steer.tests.fuzz_inputs import SIGMAS, frozen, unchanged
from steer.tests.host_models import EPS, FLOW, with_law
from steer.tests.test_inversion_file import (
    CORRUPTED,
    ERRORS,
    WAYS,
    break_saving,
    corrupted_file,
    inversion_of,
    null_text_of,
    same_inversion,
    same_null_text,
    tree,
)

FIRST = "steer/inversion_00001_.safetensors [output]"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's input and output folders, empty, in a folder that holds a file of somebody else."""
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    inversion_file.save(tmp_path / "outside.safetensors", inversion_of())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(inversion, null_text=None, prefix="steer/inversion"):
    return SteerSaveInversion.execute(inversion, prefix, null_text)


def loaded(file=FIRST):
    return SteerLoadInversion.execute(file).args


@pytest.mark.parametrize("inversion", [inversion_of(), inversion_of(RECTIFIED_FLOW, (2, 16, 9, 14), 4, "SD3", False)])
def test_round_trip_is_bitwise(folders, inversion):
    null_text = null_text_of(inversion)
    output = saved(inversion, null_text)
    assert FIRST in output.ui["text"][0] and "MiB" in output.ui["text"][0] and inversion_files() == [FIRST]
    assert output.ui["files"] == [{"filename": "inversion_00001_.safetensors", "subfolder": "steer", "type": "output"}]
    back, latent, noise, sigmas, text = loaded()
    assert same_inversion(back, inversion) and same_null_text(text, null_text)
    assert sigmas.dtype == torch.float32 and tuple(sigmas.tolist()) == inversion.sigmas
    assert noise.generate_noise(latent).shape == latent["samples"].shape == inversion.latents[0].shape


@pytest.mark.parametrize("law", [EPS, FLOW])
def test_editing_from_the_file_is_bitwise_editing_without_it(folders, shapes, law):
    model, source = with_law(shapes[0], law), noise_of((2, 4, 8, 12))
    source_text, other_text, empty = (encode(shapes[1], text) for text in ("a red circle", "a blue square", ""))
    sigmas = sigmas_of(model, 4)
    guider = host_guider(model, source_text, empty, 1.0)
    latent, noise, inversion = SteerDDIMInversion.execute(guider, sigmas, {"samples": source}, 0, 1e-4).args
    saved(inversion, empty)
    back, latent_back, noise_back, sigmas_back, empty_back = loaded()
    assert same_inversion(back, inversion) and torch.equal(latent_back["samples"], latent["samples"])

    def edited(latent, noise, sigmas, negative):
        guider, euler = host_guider(model, other_text, negative, 3.0), comfy.samplers.sampler_object("euler")
        return run(guider, euler, sigmas, noise.generate_noise(latent), latent["samples"])

    without = edited(latent, noise, sigmas, empty)
    assert torch.equal(edited(latent_back, noise_back, sigmas_back, empty_back), without) and without.isfinite().all()


USES = {
    "guider": lambda shapes, text: host_guider(shapes[0], [], text, 3.0),
    "zero": lambda shapes, text: nodes.ConditioningZeroOut().zero_out(text),
    "combine": lambda shapes, text: nodes.ConditioningCombine().combine([], text),
    "range": lambda shapes, text: nodes.ConditioningSetTimestepRange().set_range(text, 0.0, 1.0),
    "save": lambda shapes, text: saved(inversion_of(), text),
}


@pytest.mark.parametrize("use", USES)
def test_without_null_text_only_what_uses_it_fails(folders, shapes, use):
    saved(inversion_of())
    *_, text = loaded()
    with pytest.raises(ValueError, match=r"SteerLoadInversion: file .*\[output\]' holds no null-text.*connected, or"):
        USES[use](shapes, text)


def test_files_are_counted_and_listed(folders):
    for prefix in ("steer/inversion", "steer/inversion", "plain", "deep/er/%year%/x"):
        saved(inversion_of(), prefix=prefix)
    (folders / "input" / "sub").mkdir()
    for name in ("sub/b.safetensors", "a.SAFETENSORS", "picture.png"):
        os.link(folders / "outside.safetensors", folders / "input" / name)
    (folders / "output" / "link.safetensors").symlink_to(folders / "outside.safetensors")
    names = inversion_files()
    assert names[:2] == ["a.SAFETENSORS", "sub/b.safetensors"] and FIRST in names and len(names) == 6
    assert "steer/inversion_00002_.safetensors [output]" in names and "plain_00001_.safetensors [output]" in names
    for name in (*names, "a.SAFETENSORS [input]"):
        assert SteerLoadInversion.validate_inputs(name) is True
        assert same_inversion(loaded(name)[0], inversion_of())


def test_saves_at_the_same_time_keep_every_inversion(tmp_path):
    """Four processes, ten saves each, under one prefix; and a reader finds none that is not whole."""
    script = str(ROOT / "tests" / "saving_at_once.py")
    run = subprocess.run([sys.executable, script, str(tmp_path), "5"], capture_output=True, text=True, timeout=300)
    assert run.stdout.splitlines() == ["40 0"] * 5, run.stdout + run.stderr[-2000:]


def test_what_killed_saves_left_is_removed_and_said(folders, caplog):
    saved(inversion_of())
    left = folders / "output" / "steer" / "inversion_00002_.safetensors.part"
    left.write_bytes(b"half")
    with caplog.at_level(logging.INFO, "steer"):
        assert saved(inversion_of()).ui["files"][0]["filename"] == "inversion_00003_.safetensors"
    assert left.exists() and "killed" not in caplog.text
    os.utime(left, (0, 0))
    with caplog.at_level(logging.INFO, "steer"):
        saved(inversion_of())
    assert not left.exists() and "killed processes left unfinished: inversion_00002_.safetensors.part" in caplog.text


def test_a_changed_file_reruns(folders):
    saved(inversion_of())
    first = SteerLoadInversion.fingerprint_inputs(FIRST)
    assert SteerLoadInversion.fingerprint_inputs(FIRST) == first
    path = folders / "output" / "steer" / "inversion_00001_.safetensors"
    time = path.stat().st_mtime_ns
    inversion_file.save(path, replace(inversion_of(), from_top=False))
    os.utime(path, ns=(time, time))
    assert SteerLoadInversion.fingerprint_inputs(FIRST) != first


NAMES = [
    "outside.safetensors", "../outside.safetensors", "../outside.safetensors [output]", "a/../../outside.safetensors",
    "sub/../../outside.safetensors [input]", "{root}/outside.safetensors", "{root}/outside.safetensors [output]",
    "link.safetensors", "link.safetensors [output]", "linked/outside.safetensors", "loop.safetensors [output]",
    "dir.safetensors", "fine.safetensors [temp]", "fine.safetensors", "fine.safetensors [output]extra", "", " [output]",
    "[output]", ".", "..", "/", "fine", "~/outside.safetensors", "file://{root}/outside.safetensors", "a\0.safetensors",
    "fine.safetensors\0 [output]", "x" * 5000 + ".safetensors", "/etc/passwd", "/dev/zero", "\udcff.safetensors",
    "pipe.safetensors [output]", "..\\outside.safetensors", "../output2/fine.safetensors [output]", "fine.png [output]",
]  # fmt: skip


NOT_TEXTS = [None, 5, ["fine.safetensors"]]


@pytest.mark.parametrize("name", [*NAMES, *NOT_TEXTS])
def test_hostile_names_are_refused(folders, name):
    for place in ("input", "output", "temp", "output2"):
        (folders / place).mkdir(exist_ok=True)
    for place in ("input", "output"):
        (folders / place / "link.safetensors").symlink_to("../outside.safetensors")
        (folders / place / "loop.safetensors").symlink_to("loop.safetensors")
        (folders / place / "linked").symlink_to("..")
        (folders / place / "dir.safetensors").mkdir()
    os.mkfifo(folders / "output" / "pipe.safetensors")
    for place in ("output/fine.png", "temp/fine.safetensors", "output2/fine.safetensors"):
        os.link("outside.safetensors", place)
    name = name.replace("{root}", str(folders)) if isinstance(name, str) else name
    names = sorted(os.walk(folders))
    assert inversion_files() == []
    message = "it needs one of its choices" if name in NOT_TEXTS else "choose a .safetensors file that lies in"
    with pytest.raises(ValueError, match=f"^SteerLoadInversion: file is .*{message}"):
        loaded(name)
    if name is not None:
        assert "choose a .safetensors" in SteerLoadInversion.validate_inputs(name)
    assert sorted(os.walk(folders)) == names


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a/../../x", "", ".", "..", "a/..", "out/x", "a\0b", "a/b\0"])
def test_hostile_prefixes_are_refused(folders, prefix):
    (folders / "output" / "out").symlink_to("../input")
    before = tree(folders)
    with pytest.raises(ValueError, match="^SteerSaveInversion: filename_prefix is .*'steer/inversion'"):
        saved(inversion_of(), prefix=prefix)
    assert tree(folders) == before


@pytest.mark.parametrize("index", range(CORRUPTED))
def test_corrupted_files_are_refused(folders, index):
    mutation, data = corrupted_file(index)
    (folders / "input" / "a.safetensors").write_bytes(data)
    before = tree(folders)
    with pytest.raises(ValueError, match="^SteerLoadInversion: file 'a.safetensors' is refused: .") as caught:
        loaded("a.safetensors")
    assert type(caught.value) is ValueError and tree(folders) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"latent_format": "SD15x"}, "latent format 'SD15x', which this ComfyUI"),
        ({"latent_format": "torch"}, "latent format 'torch'"),
        ({"latent_format": "SD3"}, "has 4 channels, and its latent format SD3 has 16"),
    ],
)
def test_another_family_is_neither_saved_nor_loaded(folders, changes, message):
    inversion = replace(inversion_of(), **changes)
    inversion_file.save(folders / "input" / "a.safetensors", inversion)
    before = tree(folders)
    with pytest.raises(ValueError, match=f"^SteerLoadInversion: file 'a.safetensors' is refused: .*{message}"):
        loaded("a.safetensors")
    with pytest.raises(ValueError, match=f"^SteerSaveInversion: .*{message}"):
        saved(inversion)
    assert tree(folders) == before


def test_a_conditioning_that_cannot_be_stored_is_named(folders):
    before = tree(folders)
    with pytest.raises(ValueError, match=r"^SteerSaveInversion: null_text\[0\] carries 'control'.*after loading"):
        saved(inversion_of(), [[torch.zeros(1, 77, 8), {"control": object()}]])
    assert tree(folders).keys() - before.keys() <= {str(folders / "output" / "steer")}


@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_leaves_no_file(folders, monkeypatch, where, error):
    break_saving(monkeypatch, where, error)
    with pytest.raises(type(error)) as caught:
        saved(inversion_of())
    if isinstance(error, OSError):
        assert str(caught.value).startswith("SteerSaveInversion: 'steer/inversion' could not be saved")
    assert not [path for path in (folders / "output").rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made(folders):
    (folders / "output" / "steer").write_text("a file")
    with pytest.raises(OSError, match="^SteerSaveInversion: 'steer/inversion' could not be saved"):
        saved(inversion_of())
    assert (folders / "output" / "steer").read_text() == "a file"


def test_null_text_of_a_run_is_kept_bitwise(folders, shapes):
    prompt, empty = (encode(shapes[1], text) for text in ("a red circle", ""))
    guider = host_guider(shapes[0], prompt, empty, 1.0)
    latent = {"samples": noise_of((1, 4, 8, 8))}
    inversion = SteerDDIMInversion.execute(guider, sigmas_of(shapes[0], 3), latent, 0, 1e-4, False).args[2]
    text = SteerNullText.execute(shapes[0], prompt, empty, 3.0, inversion, 2, 0.01, 0.0).args[0]
    saved(inversion, text)
    assert same_null_text(loaded()[4], text) and not torch.equal(text[0][0], empty[0][0])


def on_family(family):
    latent, start, inverted, _ = oracles.inversion_of(family)
    saved = SteerSaveInversion.execute(inverted, f"steer_test/{family.name.split()[0]}")
    name = saved.ui["files"][0]
    loaded, samples, begin, sigmas, _ = SteerLoadInversion.execute(
        f"{name['subfolder']}/{name['filename']} [output]"
    ).args
    assert all(map(torch.equal, loaded.latents, inverted.latents)) and sigmas.tolist() == list(inverted.sigmas)
    assert torch.equal(samples["samples"], latent["samples"])
    assert torch.equal(begin.generate_noise(samples), start.generate_noise(latent))


def check_saved(world, given, run, output):
    (file,) = output.ui["files"]
    root = Path(folder_paths.get_output_directory())
    path = (root / file["subfolder"] / file["filename"]).resolve()
    assert path.is_relative_to(root)
    loaded, null_text = inversion_file.load(path)
    rmtree(root / path.relative_to(root).parts[0]) if path.parent != root else path.unlink()
    assert unchanged(frozen(loaded), given["inversion"]) and (null_text is None) == (given.get("null_text") is None)


def check_loaded(world, given, run, output):
    found, latent, noise, sigmas, null_text = output
    assert unchanged(frozen(found), world.usual["STEER_INVERSION"]["inversion"])
    assert torch.equal(sigmas, torch.tensor(SIGMAS)) and noise.generate_noise(latent).shape == latent["samples"].shape


ORACLE = {
    "SteerSaveInversion": ("comes back bit for bit, with its start", on_family),
    "SteerLoadInversion": ("comes back bit for bit, with its start", on_family),
}
CHECK = {
    "SteerSaveInversion": (check_saved, ()),
    "SteerLoadInversion": (check_loaded, ()),
}
USUAL = {
    "SteerSaveInversion": {"filename_prefix": ("fuzz/saved", "fuzz")},
    "SteerLoadInversion": {"file": ("kept/inversion_00001_.safetensors [output]",)},
}
