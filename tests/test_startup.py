"""What starting costs, told by what is imported: times would depend on the machine."""

import subprocess
import sys

import pytest
from programs import ROOT

from experiments.tools.kill_and_resume import SMALL

SLOW = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "tensorflow_datasets",
    "scipy",
    "sklearn",
    "pandas",
    "altair",
    "jinja2",
    "numpy",
)

PROGRAMS = {
    *("train_step", "batch_statistics", "batch_logits", "batch_tapped", "moments_start", "project"),
    *("_next_centre", "assign", "_add_members", "assign_locations", "take", "account", "class_sums"),
}


def test_help_imports_nothing_that_is_slow():
    command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--compilation_cache" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"i2x_jax.config", "i2x_jax.command"} <= imported
    assert not imported & set(SLOW)


@pytest.mark.slow
def test_compile_times_are_told_of_every_program():
    command = [sys.executable, "experiments/benchmarks/compile_times.py", *SMALL, "--least=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table = [line.split() for line in lines[lines.index(next(line for line in lines if line.startswith("program"))) :]]
    rows = {row[0]: [float(value) for value in row[-4:]] for row in table[1:]}
    assert PROGRAMS <= set(rows)
    everything = rows.pop("all")
    assert everything[0] == sum(row[0] for row in rows.values())
    # Each row is rounded to a hundredth of a second.
    assert everything[3] == pytest.approx(sum(row[3] for row in rows.values()), abs=0.01 * len(rows))
    assert rows["train_step"][3] > 0


def test_compile_times_refuse_what_has_no_meaning():
    command = [sys.executable, "experiments/benchmarks/compile_times.py", "--workdir=runs/mine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == (
        "compile_times.py: error: --workdir has no meaning here; allowed: see --help; leave it out\n"
    )
