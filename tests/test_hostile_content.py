"""A run directory that somebody else made: refused in one line or shown harmlessly; nothing executed, nothing outside
touched.

Each row of the tables is a file, what was done to it, and what the line that answers it says.
"""

import io
import itertools
import json
import os
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw
from programs import contents

from i2x_jax import Run
from i2x_jax.config import InputError, RefineConfig, from_config_dict, printable, to_dict
from i2x_jax.data.dataset import load
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.refine import finished_seed
from i2x_jax.report.contact_sheet import write_label
from i2x_jax.results import arrays
from i2x_jax.results.files import CHECKPOINTS, STEPS, read_config
from i2x_jax.results.opened_run import dataset_of
from tests.helpers import one_line

MARKER = "executed"


class Payload:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(MARKER),)


@pytest.fixture
def workdir(finished, tmp_path, monkeypatch):
    """A copy of the finished run, to be harmed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "run")
    yield tmp_path / "run"
    assert not (tmp_path / MARKER).exists()


def change(function):
    """Harm to the array in a .npy file."""
    return lambda path: np.save(path, function(np.load(path)))


def change_member(name, function):
    """Harm to a member of a .npz file."""

    def harm(path):
        members = dict(np.load(path))
        np.savez(path, **(members | {name: function(members[name])}))

    return harm


def with_value(value, place=0):
    def function(array):
        array.flat[place] = value
        return array

    return function


def objects(array):
    return np.array([Payload()] * len(array), object)


def header(shape, dtype="<f4", data=bytes(64)):
    """A .npy file that declares a shape and holds hardly anything."""

    def harm(path):
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            file.write(data)

    return harm


def member_with_header(name, shape):
    def harm(path):
        members = {key: value for key, value in np.load(path).items() if key != name}
        np.savez(path, **members)
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", buffer.getvalue() + bytes(64))

    return harm


def bomb(path):
    """A hundred megabytes of zeros in a hundred kilobytes."""
    np.savez_compressed(path, **(dict(np.load(path)) | {"centroids": np.zeros((8, 4 * 10**6), np.float32)}))


def without_member(name):
    return lambda path: np.savez(path, **{key: value for key, value in np.load(path).items() if key != name})


def pickled(path):
    np.save(path, np.array([Payload()], object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[128:])


def another_archive(path):
    np.savez(path.with_suffix(".npz"), labels=np.zeros(3))
    os.replace(path.with_suffix(".npz"), path)


ARRAYS = {
    "objects": ("labels.npy", change(objects), "Python objects in dtype"),
    "objects in an archive": ("curated.npz", change_member("scores", lambda _: objects([0])), "Object arrays cannot"),
    "a bare pickle": ("intensity.npy", pickled, "cannot be read ("),
    "an archive for an array": ("intensity.npy", another_archive, "it is not an array"),
    "too few rows": ("labels.npy", change(lambda labels: labels[:-1]), "instead of"),
    "another K": (
        "intensity.npy",
        change(lambda p: p[..., :5].copy()),
        "[8 x 394 x 5] instead of float32 [T=8 x N=394",
    ),
    "another T": ("confidence.npy", change(lambda y: y[1:].copy()), "float32 [7 x 394 x 10] instead of"),
    "another T in groups": ("groups.npy", change(lambda g: np.vstack([g, g])), "int32 [14 x 394] instead of"),
    "integers for floats": ("intensity.npy", change(lambda p: p.astype(np.int32)), "it is int32 [8 x 394 x 8]"),
    "floats for integers": ("groups.npy", change(lambda g: g.astype(np.float64)), "it is float64 [7 x 394]"),
    "wider floats": ("confidence.npy", change(np.float64), "float64 [8 x 394 x 10] instead of float32"),
    "one number": ("labels.npy", change(lambda _: np.int32(3)), "it is int32 [] instead of int32 [N]"),
    "text": ("steps.npy", change(lambda s: s.astype("U")), "instead of int32 [T]"),
    "NaN": ("intensity.npy", change(with_value(np.nan, 77)), "not finite everywhere"),
    "infinity": ("confidence.npy", change(with_value(np.inf, 77)), "not finite everywhere"),
    "a prototype too many": ("assignments.npy", change(with_value(8)), "at least 0 and below 8"),
    "a group below noise": ("groups.npy", change(with_value(-3)), "at least -2"),
    "a negative label": ("labels.npy", change(with_value(-1)), "at least 0"),
    "steps that fall": ("steps.npy", change(lambda s: s[::-1].copy()), "its steps do not rise"),
    "steps that start late": (
        "steps.npy",
        change(lambda s: s[1:].copy()),
        "instead of float32 [T=7",
    ),
    "a huge array": ("intensity.npy", header((2**40, 394, 8)), "cannot be read ("),
    "a size beyond 64 bits": ("intensity.npy", header((2**62, 2**62, 2**62)), "cannot be read ("),
    "a negative size": ("intensity.npy", header((-1, 394, 8)), "cannot be read ("),
    "a huge member": ("prototypes.npz", member_with_header("centroids", (2**30, 2**30)), "cannot be read ("),
    "a bomb": ("prototypes.npz", bomb, "it is compressed"),
    "a missing member": ("prototypes.npz", without_member("mean"), "it has no member mean"),
    "one d and another": ("prototypes.npz", change_member("mean", lambda m: m[:-1]), "[4 x 8] instead of float32 [D=4"),
    "NaN among centroids": (
        "prototypes.npz",
        change_member("centroids", with_value(np.nan)),
        "centroids is not finite",
    ),
    "left out beyond the end": (
        "curated.npz",
        change_member("left_out", lambda _: np.array([394])),
        "left_out is somewhere outside of what it can be: at least 0 and below 394",
    ),
    "a class beyond M": (
        "ranking.npz",
        change_member("label", with_value(10)),
        "label is somewhere outside of what it can be: at least 0 and below 10",
    ),
    "evidence since a checkpoint that is none": (
        "ranking.npz",
        change_member("since", with_value(8)),
        "since is somewhere outside of what it can be: at least -1 and below 8",
    ),
    "evidence that is no number": (
        "ranking.npz",
        change_member("evidence", with_value(np.nan)),
        "evidence is not finite everywhere",
    ),
    "a ranking of other prototypes": (
        "ranking.npz",
        change_member("ranked", lambda ranked: ranked[1:]),
        "ranked is bool [7] instead of bool [K=8]",
    ),
    "more that got right than was wrong": (
        "ranking.npz",
        change_member("gained", with_value(10**6)),
        "more images changed than there are",
    ),
    "more that got wrong than was right": (
        "ranking.npz",
        change_member("lost", with_value(10**6)),
        "more images changed than there are",
    ),
    "a prototype beyond K": (
        "curated.npz",
        change_member("skipped", lambda _: np.array([8])),
        "at least 0 and below 8",
    ),
}


def opened(workdir, name):
    """Opens an array, and then one that has to agree with it."""
    stem, _, ending = name.partition(".")
    run = Run(workdir)
    (run.array if ending == "npy" else run.arrays)(stem)
    run.array("confidence")


@pytest.mark.parametrize(("name", "harm", "words"), ARRAYS.values(), ids=ARRAYS)
def test_arrays(workdir, name, harm, words):
    harm(workdir / name)
    before = contents(workdir)
    with pytest.raises(InputError) as error:
        opened(workdir, name)
    line = one_line(error)
    assert words in line
    assert f"{workdir}/" in line
    assert "allowed: a file made by this program; move it away" in line
    assert contents(workdir) == before


@pytest.mark.parametrize("place", [0, 20, -1])
def test_an_array_is_checked_to_its_end_and_again_when_its_file_has_changed(workdir, monkeypatch, place):
    monkeypatch.setattr(arrays, "CHECKED_AT_A_TIME", 7)
    run = Run(workdir)
    first = run.array("intensity")
    assert run.array("intensity") is first
    harmed = workdir / "other.npy"
    np.save(harmed, with_value(np.nan, place)(np.array(first)))
    harmed.replace(workdir / "intensity.npy")
    with pytest.raises(InputError, match="it is not finite everywhere"):
        run.array("intensity")
    np.save(harmed, first)
    harmed.replace(workdir / "intensity.npy")
    np.testing.assert_array_equal(run.array("intensity"), first)


def text(changed):
    return lambda path: path.write_text(changed(path.read_text()))


def entry(function):
    """Harm to the object in a JSON file, or in the first line of one."""

    def harm(path):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        value = json.loads(lines[0])
        function(value)
        path.write_text("\n".join([json.dumps(value), *lines[1:]]) + "\n")

    return harm


DEEP = "[" * 100_000 + "]" * 100_000
JSON = {
    "nested without end": ("config.json", text(lambda _: DEEP), "cannot be read ("),
    "metrics nested without end": ("metrics.jsonl", text(lambda _: DEEP + "\n"), "cannot be read ("),
    "explanation nested without end": ("explanation.json", text(lambda _: DEEP), "explanation is not JSON ("),
    "a list": ("config.json", text(lambda _: "[]"), "has no member 'config'"),
    "a number": ("refinement.json", text(lambda _: "3"), "$ 3 is not of type 'object'"),
    "NaN": ("metrics.jsonl", entry(lambda line: line.update(loss=float("nan"))), "NaN is not a finite number"),
    "a float beyond floats": (
        "metrics.jsonl",
        text(lambda lines: lines.replace('"step": 0', '"step": 1e999', 1)),
        "1e999 is not a finite number",
    ),
    "a number of many digits": (
        "metrics.jsonl",
        text(lambda lines: lines.replace('"step": 0', f'"step": {"9" * 400}', 1)),
        "a number has 400 digits",
    ),
    "a key twice": ("config.json", text(lambda t: t.replace("{", '{"config": 1,', 1)), "a key stands twice"),
    "text for a number": ("metrics.jsonl", entry(lambda line: line.update(step="0")), "'0' is not of type 'integer'"),
    "an accuracy of 7": ("metrics.jsonl", entry(lambda line: line.update(accuracy=7)), "7 is greater than the maximum"),
    "no fingerprint": ("config.json", entry(lambda c: c["provenance"].pop("data_fingerprint")), "data_fingerprint"),
    "text for seconds": ("config.json", entry(lambda c: c["timing"].update(train="long")), "$.timing.train 'long'"),
    "a list for a setting": (
        "config.json",
        entry(lambda c: c["config"]["data"].update(name=[])),
        "config key data.name is [] of type list",
    ),
    "a strategy of another's": (
        "refinement.json",
        entry(lambda table: table["strategies"].update({"\x1b[2J": {}})),
        "refinement.json cannot be read (",
    ),
    "text for an accuracy": (
        "refinement.json",
        entry(lambda table: table["before"].update(accuracy="99")),
        "$.before.accuracy '99' is not of type 'number'",
    ),
    "an unknown pair": (
        "refinement.json",
        entry(lambda table: table.update(pair=["6", "\x1b[31m\nrun.py: done"])),
        r"unknown class '\x1b[31m\nrun.py: done'",
    ),
}


@pytest.mark.parametrize(("name", "harm", "words"), JSON.values(), ids=JSON)
def test_json(workdir, name, harm, words):
    harm(workdir / name)
    before = contents(workdir)
    with pytest.raises(InputError) as error:
        Run(workdir).summary()
    assert words in one_line(error)
    assert contents(workdir) == before


OUTCOME = {"accuracy": 0.5, "pair_confusions": 1, "worst_class": {"class": "a", "accuracy": 0.0}, "confusion": [[1]]}


@pytest.mark.parametrize(
    "value",
    [[], {}, {"full": 3}, {"full": {"accuracy": 0.5}}, {"other": {}}, {"hard": OUTCOME}, {"full": OUTCOME | {"x": 1}}],
)
def test_what_a_killed_refinement_left(tmp_path, value):
    path = tmp_path / ".refine-seed-0.json"
    settings = to_dict(RefineConfig())
    for harmed in (value, {"settings": settings, "outcomes": value}, {"settings": {}, "outcomes": {"full": OUTCOME}}):
        path.write_text(json.dumps(harmed))
        with pytest.raises(InputError, match="cannot be read"):
            finished_seed(path, RefineConfig(), ["full"])
    path.write_text(json.dumps({"settings": settings, "outcomes": {"full": OUTCOME}}))
    assert finished_seed(path, RefineConfig(), ["full"]) == {"full": OUTCOME}
    assert finished_seed(path, RefineConfig(learning_rate=1.0), ["full"]) is None
    path.unlink()
    assert finished_seed(path, RefineConfig(), ["full"]) is None


def link_to(kind):
    def harm(path, outside):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to({"file": outside / "kept.txt", "folder": outside, "nothing": outside / "none"}[kind])

    return harm


LINKS = {
    "an array": ("intensity.npy", link_to("file")),
    "the metrics, which are appended to": ("metrics.jsonl", link_to("file")),
    "the config, which is rewritten": ("config.json", link_to("file")),
    "the checkpoints": (CHECKPOINTS, link_to("folder")),
    "one checkpoint": (f"{CHECKPOINTS}/0", link_to("folder")),
    "a leftover, which is deleted": (".tmp-train", link_to("folder")),
    "a file that is not there yet": (".refine-seed-0.json", link_to("nothing")),
    "a pipe": ("groups.npy", lambda path, _: (path.unlink(), os.mkfifo(path))),
}


@pytest.mark.parametrize(("name", "harm"), LINKS.values(), ids=LINKS)
def test_links_are_not_followed(workdir, finished, tmp_path, name, harm):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.txt").write_text("kept")
    harm(workdir / name, outside)
    directory = RunDirectory(workdir)
    for use in (lambda: directory.check_config(read_config(finished)), lambda: directory.locked().__enter__()):
        with pytest.raises(InputError) as error:
            use()
        line = one_line(error)
        assert f"{workdir / name} is {'neither a file nor' if 'groups' in name else 'a link to'}" in line
        assert "allowed in a run directory: files and folders of its own" in line
    assert contents(outside).keys() == {"kept.txt"}
    assert (outside / "kept.txt").read_text() == "kept"
    if name == "intensity.npy":
        with pytest.raises(InputError, match="it is not a file of its own"):
            Run(workdir).array("intensity")


def test_a_hard_link_is_not_written_through(workdir, tmp_path):
    outside = tmp_path / "outside.jsonl"
    os.link(workdir / "metrics.jsonl", outside)
    before = outside.read_bytes()
    directory = RunDirectory(workdir)
    directory.cut_metrics(0)
    directory.add_metrics(1, "validation", 0.5, 0.5)
    assert outside.read_bytes() == before
    assert len(Run(workdir).metrics) == 2


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "mnist/../../x", "huggingface:mnist", "mnist/x=1", "\x1b[2J"]
)
def test_a_name_that_is_a_path_or_worse(workdir, name):
    path = workdir / "config.json"
    header = json.loads(path.read_text())
    header["config"]["data"]["name"] = name
    path.write_text(json.dumps(header))
    with pytest.raises(InputError) as error:
        dataset_of(read_config(workdir), None)
    line = one_line(error)
    assert printable(f"unknown data set {name!r}") in line
    assert "\x1b" not in line
    assert read_config(workdir) == from_config_dict(header["config"])
    assert load("digits", "test").class_names


STRANGERS = ("12345", "007", "²", "٣", "-1", "garbage", "0.orbax-checkpoint-tmp-1")


def test_strangers_among_the_checkpoints(workdir):
    """Garbage is left alone by whoever reads; steps are those that were analysed."""
    for name in STRANGERS:
        (workdir / CHECKPOINTS / name).mkdir()
    (workdir / CHECKPOINTS / "77").write_text("a file")
    run = Run(workdir)
    directory = RunDirectory(workdir)
    assert all(directory.complete(step) for step in STEPS)
    step = run.steps[-1]
    assert run.variables(step)["params"]
    for stranger in (12345, 77):
        with pytest.raises(InputError, match=f"no checkpoint at step {stranger}; allowed: 0, "):
            run.variables(stranger)
    assert all((workdir / CHECKPOINTS / name).is_dir() for name in STRANGERS)


NAMES = {
    "markup": ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    "colours": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "a line of its own": ("1\nRefinement on the test set: perfect", r"1\nRefinement on the test set: perfect"),
    "right to left": ("a\u202eb\u200f", r"a\u202eb\u200f"),
    "NUL": ("a\0b", r"a\x00b"),
    "a bell and a carriage return": ("a\a\rb", r"a\x07\rb"),
    "half a character": ("a\ud800", r"a\ud800"),
}


@pytest.mark.parametrize(("name", "printed"), NAMES.values(), ids=NAMES)
def test_class_names_are_shown_harmlessly(workdir, name, printed):
    plain = Run(workdir).summary()
    old = Run(workdir).refinement["pair"][0]

    def renamed(value):
        if isinstance(value, dict):
            return {name if key == old else key: renamed(item) for key, item in value.items()}
        return [renamed(item) for item in value] if isinstance(value, list) else name if value == old else value

    for file in ("explanation.json", "refinement.json"):
        path = workdir / file
        path.write_text(json.dumps(renamed(json.loads(path.read_text()))))
    run = Run(workdir)
    found = run.summary()
    assert printed in found
    assert all(line.isprintable() for line in found.split("\n"))
    assert len(found.split("\n")) == len(plain.split("\n"))
    draw = ImageDraw.Draw(Image.new("RGB", (240, 60)))
    for prototype, ranked in run.prototypes:
        write_label(draw, prototype, ranked, 0)
    with pytest.raises(InputError) as error:
        run.explanation.for_class("nobody")
    assert one_line(error).isprintable()
    assert printed in str(error.value)


def test_printable_leaves_what_can_be_printed():
    assert printable("Äpfel 苹果 תפוח – ½") == "Äpfel 苹果 תפוח – ½"
    every = "".join(map(chr, itertools.chain(range(0x300), range(0x2000, 0x2100))))
    assert printable(every).isprintable()
