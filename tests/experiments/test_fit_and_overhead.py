"""The programs that show what a fit on a sample of locations loses, and what measuring costs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, environment

from i2x_jax import Run

pytestmark = pytest.mark.slow


def python(base, *arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(base))


def test_a_fit_on_more_locations_is_nearer_to_one_on_all(base, finished, tmp_path):
    path = tmp_path / "fit.json"
    arguments = (f"--workdir={finished}", "--locations=2,200,10000", "--seeds=4", f"--json={path}")
    done = python(base, "experiments/benchmarks/sampled_fit.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    # 8 prototypes and 6,304 locations: 10,000 a prototype are more than there are.
    assert [fit["locations"] for fit in found["fits"]] == [6304, 16, 1600]
    whole, few, some = (np.array(fit["excess_percent"]) for fit in found["fits"])
    assert whole.mean() == pytest.approx(0, abs=1e-9)
    assert few.min() > some.max() - 1e-9
    assert some.mean() < 5
    # The same objective as that of the run, which was fitted on all with another start.
    inertia = float(Run(finished).arrays("prototypes")["inertia"])
    assert min(found["fits"][0]["objectives"]) == pytest.approx(inertia, rel=0.1)
    assert "1600" in done.stdout.replace(",", "")


def test_sampled_fit_refuses_what_is_no_run(base, tmp_path):
    done = python(base, "experiments/benchmarks/sampled_fit.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"sampled_fit.py: error: {tmp_path} is not a run directory")
    assert len(done.stderr.splitlines()) == 1


def test_measuring_costs_little_beside_a_forward_pass(base, tmp_path):
    path = tmp_path / "overhead.json"
    arguments = ("--networks=cnn", "--checkpoints=4", "--prototypes=5", "--batch_size=16", f"--json={path}")
    done = python(base, "experiments/benchmarks/overhead.py", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())["networks"]["cnn"]["cpu"]
    assert 0 < found["operations_over_forward_without_ledger"] < found["operations_over_forward"] < 0.05
    assert 0 < found["bytes_over_forward_without_ledger"] < found["bytes_over_forward"]
    # Four convolutions, two operations a product; those with the padding are not counted: a part of a twelfth.
    convolutions = ((28 * 28, 9 * 32), (14 * 14, 9 * 32 * 64), (7 * 7, 9 * 64 * 64), (7 * 7, 9 * 64 * 64))
    products = 2 * sum(places * size for places, size in convolutions)
    assert 11 / 12 * products < found["forward_operations_per_image"] < products
    assert {"take", "account", "assign_locations", "class_sums"} <= set(found["programs"])
    # The widest layer of 16 images, at least; one device has nobody to exchange anything with.
    assert found["temporary_bytes"] >= found["forward_temporary_bytes"] > 16 * 28 * 28 * 32 * 4
    assert (found["devices"], found["collectives"]) == (1, 0)


def test_devices_exchange_sums_and_nothing_else(base, tmp_path):
    path = tmp_path / "overhead.json"
    arguments = ("--networks=cnn", "--checkpoints=4", "--prototypes=5", "--batch_size=16", f"--json={path}")
    command = [sys.executable, "experiments/benchmarks/overhead.py", *arguments]
    several = environment(base) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=several)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())["networks"]["cnn"]["cpu"]
    assert (found["devices"], found["batch_size"]) == (2, 16)
    exchanges = {name for name, program in found["programs"].items() if program["collectives"]}
    assert {"account", "class_sums"} <= exchanges
    # A forward pass, and what is written by rows, needs nobody else's images.
    assert not exchanges & {"features", "head", "assign_locations", "added"}
