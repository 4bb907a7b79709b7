"""The measured parts of the documents: put in from runs and benchmarks, found to differ, untouched elsewhere."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image
from programs import ROOT

import i2x_jax
from experiments.tools import documents
from i2x_jax.config import InputError
from i2x_jax.results.files import read_header
from i2x_jax.results.opened_run import Run

OLD = {
    "docs/reading.md": """Before.
<!-- digits: begin -->
old
<!-- digits: end -->
After.
""",
    "README.md": """Before.
<!-- experiments: begin -->
not yet measured
<!-- experiments: end -->
Between.
<!-- speed: begin -->
| benchmark | images |
|---|---:|
| cifar | 7 |
| digits | 9 |
<!-- speed: end -->
After.
""",
    "experiments/benchmarks/benchmark.md": (
        "# Title\n<!-- benchmarks: begin -->\nnot yet measured\n<!-- benchmarks: end -->\n"
    ),
}


def timed(ours, baseline, **more):
    return {
        "equal_work": True,
        "ratio": np.median(baseline) / np.median(ours),
        "ours_cold_seconds": 2 * ours[0],
        "baseline_cold_seconds": 2 * baseline[0],
        "ours_seconds": ours,
        "baseline_seconds": baseline,
        **more,
    }


@pytest.fixture
def benchmark():
    """As benchmark.py --json writes it; forward is 1.5 times as fast as the baseline, the rest 3 times."""
    stages = {name: timed([1.0, 2.0, 3.0], [5.0, 6.0, 7.0]) for name in documents.SPEED_STAGES}
    stages["forward"] = timed([2.0], [3.0])
    parts = {"forward": 0.5, "mapping": 0.25}
    stages["explain"] |= {"parts": {"ours": parts, "baseline": parts}, "iterations": {"ours": 9, "baseline": 8}}
    return {
        "machine": {
            "date": "2030-02-01T10:00:00+00:00",
            "processor": "Abacus",
            "cores": 2,
            "load_before": 0.1,
            "versions": {"jax": "0.0"},
            "revision": "0123456789abcdef",
            "command": "experiments/benchmarks/benchmark.py --workdir=runs/digits --json=digits.json",
        },
        "sides": {side: {"images": 1200, "image_shape": [8, 8, 1], "batch_size": 64} for side in ("ours", "baseline")},
        "stages": stages,
        "memory": {"at_start": {"ours": 1e9, "baseline": 2e9}, "explain": {"ours": 1.5e9, "baseline": 2.5e9}},
        "differences": {"forward": {"logits": 1e-6}},
    }


@pytest.fixture
def folder(tmp_path):
    for path in OLD:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_digits_run_is_shown_as_it_is_printed(folder, finished):
    run = Run(finished)
    made = documents.documents(folder, {"digits": run}, {})
    text = made["docs/reading.md"].decode()
    shown = documents.inside(text, "digits").splitlines()
    printed = run.summary().splitlines()
    assert shown[0] == shown[-1] == "```"
    # All but the last paragraph, which names folders.
    assert shown[1:-1] == printed[: len(shown) - 2]
    assert printed[len(shown) - 2] == ""
    assert printed[len(shown) - 1].startswith("Run directory")
    assert str(finished) not in text
    # Nothing else has changed.
    assert text.startswith("Before.\n<!-- digits: begin -->\n```\nAccuracy at step")
    assert text.endswith("\n```\n<!-- digits: end -->\nAfter.\n")
    assert made["experiments/benchmarks/benchmark.md"].decode() == OLD["experiments/benchmarks/benchmark.md"]


def test_the_picture_is_that_of_the_run(folder, finished, tmp_path):
    (tmp_path / "made.png").write_bytes(documents.documents(folder, {"digits": Run(finished)}, {})[documents.PICTURE])
    with Image.open(tmp_path / "made.png") as made, Image.open(finished / "contact_sheet.png") as sheet:
        difference = np.abs(np.asarray(made.convert("RGB"), int) - np.asarray(sheet.convert("RGB"), int))
    assert difference.mean() < 4
    assert (tmp_path / "made.png").stat().st_size < (finished / "contact_sheet.png").stat().st_size


def test_a_row_holds_what_the_run_recorded(folder, finished):
    made = documents.documents(folder, {"small": Run(finished)}, {})
    text = made["README.md"].decode()
    head, rule, row = documents.inside(text, "experiments").splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    cells = dict(
        zip((cell.strip() for cell in head.split("|")), (cell.strip() for cell in row.split("|")), strict=True)
    )
    header = read_header(finished)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    (test,) = [line["accuracy"] for line in lines if line["split"] == "test"]
    explain = sum(header["timing"][step] for step in ("prototypes", "evidence", "ranking", "mapping", "contact_sheet"))
    assert cells["experiment"] == "small"
    assert cells["images analysed"] == str(len(np.load(finished / "labels.npy")))
    assert cells["checkpoints"] == cells["prototypes"] == "8"
    assert cells["test accuracy"] == f"{100 * test:.2f} %"
    assert cells["peak memory"] == f"{header['peak_memory']['report'] / 1e9:.2f} GB"
    for name, seconds in (("explain", explain), ("whole run", sum(header["timing"].values()))):
        number, unit = cells[name].split()
        assert float(number) * {"s": 1, "min": 60}[unit] == pytest.approx(seconds, abs=0.5 if unit == "s" else 3.1)
    # The digits block is for the run of that name.
    assert made["docs/reading.md"].decode() == OLD["docs/reading.md"]


def test_speed_stands_in_both_documents(folder, benchmark):
    made = documents.documents(folder, {}, {"digits": benchmark})
    rows = documents.inside(made["README.md"].decode(), "speed").splitlines()
    # The old row of that name is replaced, the other one stays.
    assert [row.split("|")[1].strip() for row in rows] == ["benchmark", "---", "cifar", "digits"]
    assert rows[3].split("|")[2:6] == [" 1,200 ", " 3.00 ", " 1.50 ", " 3.00 "]
    assert "1.50 GB, 2.50 GB | 2030-02-01, 0123456, Abacus, 2 cores |" in rows[3]
    text = made["experiments/benchmarks/benchmark.md"].decode()
    assert "not yet measured" not in text
    assert (
        "## digits\n\n`python experiments/benchmarks/benchmark.py --workdir=runs/digits --json=digits.json`\n\n```\n"
        in text
    )
    assert "2030-02-01T10:00:00+00:00, Abacus, 2 cores (load 0.1)" in text
    assert "revision 0123456, jax 0.0" in text
    assert "[1.000, 3.000]" in text


def test_sections_of_other_benchmarks_stay(folder, benchmark):
    growth = {
        **{name: benchmark[name] for name in ("machine", "sides")},
        "growth": {
            "explain": [
                {"images": 7, "prototypes": 8, "checkpoints": 2, "ours": {"explain": 1.0}, "baseline": {"explain": 4.0}}
            ],
            "pca": [{"rows": 10, "channels": 64, "ours": 1.0, "baseline": 2.0}],
        },
    }
    for name, report in (("digits", benchmark), ("growth", growth), ("digits", benchmark)):
        made = documents.documents(folder, {}, {name: report})
        for path, content in made.items():
            (folder / path).write_bytes(content)
    text = (folder / "experiments/benchmarks/benchmark.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## digits", "## growth"]
    assert f"{7:>8} {8:>11} {2:>12} {1:>9.2f} {4:>11.2f} {4:>7.2f}" in text
    # Growth is no row of the short table.
    assert "growth" not in (folder / "README.md").read_text()


def test_a_missing_marker_is_named(folder, finished):
    (folder / "docs/reading.md").write_text(OLD["docs/reading.md"].replace("<!-- digits: end -->", ""))
    with pytest.raises(InputError, match="no block 'digits'; allowed: <!-- digits: begin --> and <!-- digits: end -->"):
        documents.documents(folder, {"digits": Run(finished)}, {})


def test_runs_are_named_by_their_experiment_or_their_folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "mine")
    assert documents.open_run(str(tmp_path / "mine"))[0] == "mine"
    header = json.loads((tmp_path / "mine" / "config.json").read_text())
    # What is left out of the settings takes its default; these are the settings of experiments/digits.py.
    header["config"] = documents.runpy.run_path(str(ROOT / "experiments" / "digits.py"))["get_config"]().to_dict()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(header))
    assert documents.open_run(str(tmp_path / "mine"))[0] == "digits"


def test_only_finished_runs_and_benchmarks_are_taken(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "refinement.json").unlink()
    with pytest.raises(InputError, match=r"is not finished \(refine\)"):
        documents.open_run(str(tmp_path / "run"))
    for content in ("no JSON", "[1]", '{"machine": {}, "sides": {}}'):
        (tmp_path / "some.json").write_text(content)
        with pytest.raises(InputError, match=r"allowed: a file that experiments/benchmarks/benchmark\.py --json wrote"):
            documents.open_benchmark(str(tmp_path / "some.json"))


def test_check_says_what_differs_and_writes_nothing(finished):
    """The documents of the repository do not show the small run of the tests."""
    before = (ROOT / "README.md").read_bytes()
    command = [sys.executable, "experiments/tools/documents.py", f"--run={finished}", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "documents.py: error: README.md differ from what was measured; allowed: equal; run without --check\n"
    )
    assert (ROOT / "README.md").read_bytes() == before


def test_the_documents_have_their_markers():
    blocks = {documents.README: ("experiments", "speed"), documents.READING: ("digits",)}
    for path, names in (blocks | {documents.BENCHMARK: ("benchmarks",)}).items():
        assert all(documents.inside((ROOT / path).read_text(), name) for name in names)


def test_the_changelog_names_the_version_that_is_built():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "i2x_jax.__version__"}
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0].startswith(f"## [{i2x_jax.__version__}] - ")
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("document", ["README.md", "docs/reading.md"])
def test_links_lead_somewhere(document):
    text, folder = (ROOT / document).read_text(), (ROOT / document).parent
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    places = {"#" + re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower() for heading in headings}
    local = [target for target in targets if "://" not in target]
    assert local
    files = [target.partition("#")[0] for target in local if target not in places]
    assert [file for file in files if not (folder / file).exists()] == []
    assert all((folder / picture).exists() for picture in re.findall(r'<img src="([^"]+)"', text))
