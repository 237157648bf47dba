import json
import os
import pickle
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from time import time

import pytest
import torch
from safetensors.torch import load_file
from steer.files import inversion_file, safetensors
from steer.files.inversion_file import load, save, save_numbered
from steer.samplers.inversion import Inversion
from steer.samplers.noise_law import RECTIFIED_FLOW, VARIANCE_EXPLODING, NoiseLaw

SHAPES = [(1, 4, 16, 16), (2, 4, 9, 14), (1, 4, 3, 5, 7)]
LAWS = [VARIANCE_EXPLODING, RECTIFIED_FLOW, NoiseLaw(flow=True, noise_scale=1.7)]


def inversion_of(law=VARIANCE_EXPLODING, shape=SHAPES[0], levels=5, latent_format="SD15", from_top=True):
    """An inversion of random latents, whose sigmas are no round numbers."""
    generator = torch.Generator().manual_seed(levels)
    top = 1.0 if law.flow else 14.614641
    sigmas = [top * (1.0 - index / (levels - 1)) ** 1.3 for index in range(levels)]
    latents = tuple(torch.randn(shape, generator=generator) for _ in sigmas)
    return Inversion(tuple(torch.tensor(sigmas).tolist()), latents, law, latent_format, from_top)


def null_text_of(inversion, pooled=True, width=8):
    """A conditioning cut midway between the sigmas, as SteerNullText gives it."""
    generator = torch.Generator().manual_seed(1)
    cuts = [inf, *((a + b) / 2 for a, b in pairwise(inversion.sigmas[:-1])), 0.0]
    entries = []
    for start, end in pairwise(cuts):
        options = {"timestep_start": start, "timestep_end": end, "width": 512}
        if pooled:
            options["pooled_output"] = torch.randn(1, 6, generator=generator)
        entries.append([torch.randn(1, 77, width, generator=generator), options])
    return entries


def same_inversion(a, b):
    same = all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a.latents, b.latents, strict=True))
    return same and all(
        getattr(a, field) == getattr(b, field) for field in ("sigmas", "law", "latent_format", "from_top")
    )


def same_null_text(a, b):
    def plain(options):
        return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in options.items()}

    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x[0], y[0]) and plain(x[1]) == plain(y[1]) for x, y in pairs)


def tree(folder):
    """Everything below a folder, with contents and times."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_bitwise(tmp_path, law, shape):
    inversion = inversion_of(law, shape, from_top=shape == SHAPES[0])
    for null_text in (None, null_text_of(inversion), null_text_of(inversion, pooled=False)):
        save(tmp_path / "a.safetensors", inversion, null_text)
        loaded, loaded_text = load(tmp_path / "a.safetensors")
        assert same_inversion(inversion, loaded)
        assert loaded_text is None if null_text is None else same_null_text(null_text, loaded_text)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_inversion_gives_the_same_bytes(tmp_path):
    inversion = inversion_of()
    save(tmp_path / "a", inversion, null_text_of(inversion))
    loaded = load(tmp_path / "a")
    save(tmp_path / "b", *loaded)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_library_reads_the_file(tmp_path):
    inversion = inversion_of()
    save(tmp_path / "a", inversion)
    tensors = load_file(tmp_path / "a")
    assert set(tensors) == {"sigmas", *(f"latents.{index}" for index in range(5))}
    assert tensors["sigmas"].dtype == torch.float64 and tuple(tensors["sigmas"].tolist()) == inversion.sigmas


def test_latents_of_any_memory_layout(tmp_path):
    inversion = inversion_of()
    latents = tuple(latent.to(memory_format=torch.channels_last) for latent in inversion.latents)
    with torch.inference_mode():
        save(tmp_path / "a", replace(inversion, latents=latents))
    assert same_inversion(load(tmp_path / "a")[0], inversion)


def test_loaded_latents_outlive_the_file(tmp_path):
    inversion = inversion_of()
    save(tmp_path / "a", inversion)
    loaded, _ = load(tmp_path / "a")
    with open(tmp_path / "a", "r+b") as file:
        file.write(bytes((tmp_path / "a").stat().st_size))
    assert same_inversion(inversion, loaded)


def test_half_precision_and_plain_conditionings(tmp_path):
    """What other nodes give as a negative: half precision, percents, SDXL's sizes, no pooled output."""
    options = {"start_percent": 0, "end_percent": 0.5, "crop_w": 0, "aesthetic_score": 6.0, "pooled_output": None}
    cond = torch.randn(1, 154, 8).bfloat16()
    save(tmp_path / "a", inversion_of(), [[cond, options], [torch.randn(2, 77, 8).half(), {}]])
    loaded = load(tmp_path / "a")[1]
    assert torch.equal(loaded[0][0], cond.float()) and loaded[0][1] == options and loaded[1][1] == {}


GOOD = inversion_of()


@pytest.mark.parametrize(
    "latents, message",
    [((GOOD.latents[0].double(),) * 5, "float64; a float32 tensor"), ((torch.zeros(1, 4),) * 5, "any x any x any")],
)
def test_latents_that_cannot_be_stored(tmp_path, latents, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "a", replace(GOOD, latents=latents))
    assert not tree(tmp_path)


COND = torch.zeros(1, 77, 8)


@pytest.mark.parametrize(
    "null_text, message",
    [
        ([], "no entries"),
        ([[COND, {"control": object()}]], r"null_text\[0\] carries 'control'"),
        ([[COND, {"hooks": object()}]], "'hooks'"),
        ([[COND, {"mask": torch.ones(1, 8, 8)}]], "'mask'"),
        ([[COND, {"area": (1, 2, 3, 4)}]], "'area'"),
        ([[None, {}]], "NoneType; a float32"),
        ([[COND.long(), {}]], "int64"),
        ([[COND[0], {}]], "any x any x any"),
        ([[COND * float("nan"), {}]], "NaN"),
        ([[COND, {}], [torch.zeros(1, 77, 9), {}]], "any x any x 8"),
        ([[COND, {"pooled_output": torch.zeros(6)}]], "pooled_output has the shape"),
        ([[COND, {"pooled_output": torch.full((1, 6), inf)}]], "pooled_output holds NaN"),
        ([[COND, {"start_percent": -0.1}]], "start_percent = -0.1"),
        ([[COND, {"start_percent": True}]], "start_percent = True"),
        ([[COND, {"timestep_start": float("nan")}]], "timestep_start = nan"),
        ([[COND, {"timestep_start": torch.tensor(1.0)}]], "timestep_start = tensor"),
        ([[COND, {"start_percent": 0.7, "end_percent": 0.2}]], "ends, at 0.2, before it starts, at 0.7"),
        ([[COND, {"timestep_start": 1.0, "timestep_end": 2.0}]], "timestep_start"),
    ],
)
def test_conditionings_that_cannot_be_stored(tmp_path, null_text, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "a", GOOD, null_text)
    assert not tree(tmp_path)


class FullDisk:
    """A file that fails after so many bytes."""

    def __init__(self, file, room, error):
        self.file, self.room, self.error = file, room, error

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            self.file.write(data[: len(data) // 2])
            raise self.error
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def failing(error):
    def fail(*args):
        raise error

    return fail


def break_saving(monkeypatch, where, error):
    """Makes saving fail: at the file's opening, its n-th byte, its flush to the disk, or the renaming."""
    if where in ("replace", "fsync"):
        monkeypatch.setattr(safetensors.os, where, failing(error))
    elif where == "open":
        monkeypatch.setattr(safetensors, "open", failing(error), raising=False)
    else:
        monkeypatch.setattr(safetensors, "open", lambda *args: FullDisk(open(*args), where, error), raising=False)


WAYS = ["open", 0, 1000, 10_000, 20_000, "fsync", "replace"]
ERRORS = [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()]


@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_leaves_nothing_and_spares_what_was_there(tmp_path, monkeypatch, where, error):
    save(tmp_path / "old", inversion_of(levels=3))
    before = tree(tmp_path)
    break_saving(monkeypatch, where, error)
    for name in ("new", "old"):
        with pytest.raises(type(error)):
            save(tmp_path / name, GOOD)
    assert tree(tmp_path) == before


def test_a_limit_of_the_system_leaves_nothing(tmp_path):
    """Not simulated: the kernel stops the file at 10 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path / "a", GOOD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not tree(tmp_path)


def test_a_number_that_is_taken_is_left_alone(tmp_path):
    """By a finished file, by one that another process is writing, and by both."""
    for name in ("x_00003_.safetensors", "x_00004_.safetensors.part", "x_00005_.safetensors",
                 "x_00005_.safetensors.part"):  # fmt: skip
        (tmp_path / name).write_bytes(b"another's")
    before = tree(tmp_path)
    assert save_numbered(tmp_path, "x", 3, GOOD) == ("x_00006_.safetensors", [])
    after = tree(tmp_path)
    assert same_inversion(load(after_path := tmp_path / "x_00006_.safetensors")[0], GOOD)
    assert after.pop(str(after_path)) and after == before


@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_gives_the_number_back(tmp_path, monkeypatch, where, error):
    save_numbered(tmp_path, "x", 1, GOOD)
    (tmp_path / "x_00002_.safetensors.part").write_bytes(b"another's")
    before = tree(tmp_path)
    with monkeypatch.context() as broken, pytest.raises(type(error)):
        break_saving(broken, where, error)
        save_numbered(tmp_path, "x", 1, GOOD)
    assert tree(tmp_path) == before
    assert save_numbered(tmp_path, "x", 1, GOOD)[0] == "x_00003_.safetensors"


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    ours = ["a_00001_.safetensors.part", "b_123456_.safetensors.part", f"a_00001_.safetensors.{'0f' * 16}.part"]
    others = ["a_00001_.safetensors", "a_00001.safetensors.part", "a_00001_.part", "_00001_.safetensors.part",
              "a_00001_.safetensors.part.bak", f"a_00001_.safetensors.{'0g' * 16}.part", "a_1_.safetensors.part",
              "model.safetensors.part", "a_00001_.png.part"]  # fmt: skip
    for name in [*ours, *others]:
        (tmp_path / name).write_bytes(b"left")
    (tmp_path / "a_00002_.safetensors.part").mkdir()
    (tmp_path / "a_00003_.safetensors.part").symlink_to("model.safetensors.part")
    day, live = time() - 24 * 3600, tmp_path / "a_00004_.safetensors.part"
    live.write_bytes(b"just being written")
    for path in tmp_path.iterdir():
        os.utime(path, (day - 60, day - 60), follow_symlinks=False)
    os.utime(live, (day + 60, day + 60))
    name, removed = save_numbered(tmp_path, "a", 5, GOOD)
    assert sorted(removed) == sorted(ours)
    left = {*others, "a_00002_.safetensors.part", "a_00003_.safetensors.part", live.name, name}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_cannot_be_saved_removes_nothing(tmp_path):
    (tmp_path / "a_00001_.safetensors.part").write_bytes(b"left")
    os.utime(tmp_path / "a_00001_.safetensors.part", (0, 0))
    with pytest.raises(ValueError, match="NaN"):
        save_numbered(tmp_path, "a", 2, GOOD, [[COND * float("nan"), {}]])
    assert [path.name for path in tmp_path.iterdir()] == ["a_00001_.safetensors.part"]


# The 200 corrupted files. A mutation takes the file's bytes and a random generator and gives other bytes.


def opened(data):
    """(header, tensor bytes) of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def closed(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def truncated(data, random):
    return data[: random.randrange(len(data))]


def flipped(data, random):
    """One bit, as often in the header as anywhere."""
    at = random.randrange(random.choice([len(data), 8 + int.from_bytes(data[:8], "little")]))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def extended(data, random):
    return data + random.randbytes(random.randint(1, 5000))


def holed(data, random):
    """Zeros where a block of the disk was never written."""
    start = random.randrange(len(data) - 4096)
    return data[:start] + bytes(4096) + data[start + 4096 :]


def lying_length(data, random):
    length = random.choice([0, 1, 7, len(data), len(data) - 7, 2**31, 2**63, 2**64 - 1, random.getrandbits(64)])
    return length.to_bytes(8, "little") + data[8:]


def not_safetensors(data, random):
    return random.choice([b"", b"\0", b"{}", b"<html>" * 99, random.randbytes(5000), bytes(5000), b"\x89PNG\r\n" * 9])


class Hostile:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def pickled(data, random):
    stored = BytesIO()
    torch.save(random.choice([torch.zeros(9), {"sigmas": torch.zeros(9)}, Hostile()]), stored)
    protocol = random.randrange(6)
    old = BytesIO()
    torch.save(Hostile(), old, _use_new_zipfile_serialization=False)
    return random.choice([stored.getvalue(), old.getvalue(), pickle.dumps(Hostile(), protocol)])


def lying_sizes(data, random):
    header, body = opened(data)
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = random.choice([[begin, end + 4], [begin + 4, end], [end, begin], [begin, 2**62], [-4, 4]])
    return closed(header, body)


def lying_shape(data, random):
    header, body = opened(data)
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    shape = entry["shape"]
    entry["shape"] = random.choice([[*shape, 2], shape[1:], [2**40, 2**40], [-1], "4", [shape[0] * 2, *shape[1:]], []])
    return closed(header, body)


def other_dtype(data, random):
    """Stored as another type of the same or another size, with the sizes right or wrong."""
    header, body = opened(data)
    entry = header[random.choice([name for name in header if name != "__metadata__"])]
    kind, size = random.choice([("I32", 4), ("U32", 4), ("F16", 2), ("BF16", 2), ("U8", 1), ("F8_E4M3", 1), ("X", 4)])
    if random.random() < 0.7 and entry["dtype"] == "F32":
        entry["shape"][-1] = entry["shape"][-1] * 4 // size
    entry["dtype"] = kind
    return closed(header, body)


def other_names(data, random):
    header, body = opened(data)
    name = random.choice([name for name in header if name != "__metadata__"])
    new = random.choice(["latents.99", "latents.-1", "latents.01", "latents.", "../sigmas", "x" * 9999, "", "\0", "é"])
    header[new] = header.pop(name)
    return closed(header, body)


def other_metadata(data, random):
    header, body = opened(data)
    metadata = header["__metadata__"]
    change = random.randrange(9)
    if change == 0:
        header.pop("__metadata__")
    elif change == 1:
        metadata["steer_inversion"] = random.choice(["2", "0", "", "1.0", " 1", "1" * 99])
    elif change == 2:
        metadata.pop(random.choice(list(metadata)))
    elif change == 3:
        metadata["extra"] = "1"
    elif change == 4:
        metadata["contents"] = random.choice(["", "null", "[]", "{", "[" * 200_000, "1" * 5000, "NaN", '"a"', "{}"])
    elif change == 5:
        metadata["sha256"] = random.choice(["", "0" * 64, metadata["sha256"].upper()])
    elif change == 6:
        metadata["steer_inversion"] = random.choice([1, None, ["1"], {"1": 1}])
    elif change == 7:
        header["__metadata__"] = random.choice([[], "1", 1, None])
    else:
        metadata["contents"] = metadata["contents"].replace("1.0", "1.5", 1)
    return closed(header, body)


def with_right_checksum(tensors, contents, version="1"):
    """A file that is wrong on purpose and not by accident."""
    safetensors.DTYPES.update({torch.float16: "F16", torch.int64: "I64"})
    try:
        header, _ = opened(inversion_file._stored(tensors, contents)[0])
    finally:
        del safetensors.DTYPES[torch.float16], safetensors.DTYPES[torch.int64]
    header["__metadata__"]["steer_inversion"] = version
    return closed(header, b"".join(bytes(safetensors.values(tensor)) for tensor in tensors.values()))


def parts(random):
    """(tensors, contents) of a good file of either law, with and without null-text."""
    inversion = inversion_of(random.choice(LAWS), levels=random.randint(2, 6))
    null_text = null_text_of(inversion) if len(inversion.sigmas) > 2 else None
    return inversion_file._contents(inversion, null_text)


def hostile_tensors(data, random):
    tensors, contents = parts(random)
    name = random.choice(list(tensors))
    good = tensors[name]
    poisoned = good.clone()
    poisoned.view(-1)[random.randrange(good.numel())] = random.choice([float("nan"), inf, -inf])
    ways = [
        poisoned,
        good.half(),
        good.long(),
        good[None],
        good[:0],
        good.flatten()[:1],
        good.repeat(2, *[1] * (good.ndim - 1)),
    ]
    tensors[name] = random.choice(ways)
    if name != "sigmas" and tensors[name].dtype == torch.float32 and random.random() < 0.2:
        tensors[name] = tensors[name].double()
    # a conditioning with a batch is no damage
    if name.startswith("null_text") and tensors[name].ndim == good.ndim and len(tensors[name]) == 2:
        tensors[name] = good[..., None]
    return with_right_checksum(tensors, contents)


def hostile_sigmas(data, random):
    tensors, contents = parts(random)
    sigmas = tensors["sigmas"]
    ways = [sigmas.flip(0), -sigmas, sigmas * 0, sigmas[1:], torch.cat([sigmas, sigmas[-1:]]), sigmas * 0 + 5,
            sigmas[:, None], sigmas[0], torch.cat([sigmas[:1], sigmas])]  # fmt: skip
    tensors["sigmas"] = random.choice(ways)
    return with_right_checksum(tensors, contents)


def hostile_set(data, random):
    """A tensor too many or too few."""
    tensors, contents = parts(random)
    if random.random() < 0.5:
        name = random.choice(["latents.77", "model.diffusion_model.weight", "null_text.9", "null_text.0.x", "Sigmas"])
        tensors[name] = torch.zeros(1, 4, 16, 16)
    else:
        tensors.pop(random.choice(list(tensors)))
    return with_right_checksum(tensors, contents)


def hostile_contents(data, random):
    tensors, contents = parts(random)
    key, values = random.choice(
        [
            ("law", ["", "eps", "VARIANCE_EXPLODING", None, 1, ["rectified_flow"], {}]),
            ("noise_scale", [0.0, -1.0, float("nan"), inf, "1.0", None, 1, True, [1.0]]),
            ("from_top", [None, 1, "true", []]),
            ("latent_format", ["", "SD 1.5", "../SD15", "__import__('os')", "S" * 101, None, 15, ["SD15"], "a.b"]),
            ("null_text", [{}, 5, "x", [[]], [None], ["x"], [5], [{}, {}, {}, {}, {}, {}, {}], True]),
            ("extra", [1]),
        ]
    )
    contents[key] = random.choice(values)
    return with_right_checksum(tensors, contents)


def hostile_options(data, random):
    inversion = inversion_of(levels=4)
    tensors, contents = inversion_file._contents(inversion, null_text_of(inversion))
    options = {
        "control": [1, "x"], "hooks": [None], "model_conds": [{}], "area": [[1, 2, 3, 4]], "mask": [0.5], "uuid": ["x"],
        "start_percent": [-1.0, 2, "0", None, True, float("nan"), 10**400],
        "timestep_end": [-1.0, 1e300, inf, float("nan"), []],
        "timestep_start": [10**300, "inf", None], "width": [1e9, -5, "512", [1]], "": [1], "end_percent": [[0.5], {}],
        "pooled_output": [False, [], 0],
    }  # fmt: skip
    key = random.choice(list(options))
    contents["null_text"][random.randrange(1, 3)][key] = random.choice(options[key])
    return with_right_checksum(tensors, contents)


def other_version(data, random):
    return with_right_checksum(*parts(random), version=random.choice(["2", "0", "1.1", "", "latest"]))


def other_family(data, random):
    """Sigmas of one law under the name of the other."""
    tensors, contents = inversion_file._contents(inversion_of(shape=random.choice(SHAPES)), None)
    return with_right_checksum(tensors, contents | {"law": "rectified_flow"})


MUTATIONS = [truncated, flipped, extended, holed, lying_length, not_safetensors, pickled, lying_sizes, lying_shape,
             other_dtype, other_names, other_metadata, hostile_tensors, hostile_sigmas, hostile_set, hostile_contents,
             hostile_options, other_version, other_family]  # fmt: skip
CORRUPTED = 200


def good_bytes():
    inversion = inversion_of()
    return with_right_checksum(*inversion_file._contents(inversion, null_text_of(inversion)))


def corrupted_file(index):
    """(its mutation, its bytes) of one of the 200."""
    mutation = MUTATIONS[index % len(MUTATIONS)]
    return mutation, mutation(good_bytes(), Random(index))


def test_what_is_corrupted_below_was_good(tmp_path):
    (tmp_path / "a").write_bytes(good_bytes())
    inversion, null_text = load(tmp_path / "a")
    assert same_inversion(inversion, inversion_of()) and same_null_text(null_text, null_text_of(inversion))


@pytest.mark.parametrize("index", range(CORRUPTED))
def test_corrupted_files_are_refused(tmp_path, monkeypatch, index):
    """Each a ValueError, and nothing is written. What is wrong on purpose has the right checksum."""
    mutation, data = corrupted_file(index)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(data)
    before = tree(tmp_path)
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "a.safetensors")
    assert tree(tmp_path) == before
    assert type(caught.value) is ValueError and 10 < len(str(caught.value)) < 500
    assert "checksum" not in str(caught.value) or not mutation.__name__.startswith(("hostile", "other_v", "other_fam"))
