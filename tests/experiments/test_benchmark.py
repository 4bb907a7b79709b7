"""The benchmark beside PyTorch, on a run so small that it takes seconds: what it reports, and what it refuses."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.tools.kill_and_resume import SMALL
from i2x_jax.explanation import mapping
from i2x_jax.results.files import read_config

try:
    import torch
    from captum.attr import LayerGradCam

    from experiments.benchmarks import benchmark_stages, benchmark_tables, sklearn_baseline, torch_baseline
    from experiments.benchmarks.benchmark_problem import problem_of
    from experiments.benchmarks.benchmark_stages import STAGES
    from experiments.benchmarks.benchmark_worker import Side
except ImportError:
    torch = None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch is None, reason="PyTorch or captum is missing (requirements-baseline.txt)"),
]
ROOT = pathlib.Path(__file__).parents[2]
# The margin that two implementations in float32 are allowed, relative to the largest value; coefficients amplify it.
CLOSE, CLOSE_COEFFICIENTS = 1e-4, 1e-3


def python(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def report(finished, folder):
    path = folder / "report.json"
    arguments = [*SMALL, f"--workdir={finished}", f"--json={path}", "--repeats=2", "--train_steps=2"]
    done = python("experiments/benchmarks/benchmark.py", *arguments)
    assert done.returncode == 0, done.stderr
    for name in STAGES:
        assert f"\n{name} " in done.stdout
    return json.loads(path.read_text())


def test_every_stage_is_measured_on_both_sides(report):
    assert list(report["stages"])[: len(STAGES)] == list(STAGES)
    for name in STAGES:
        row = report["stages"][name]
        assert len(row["ours_seconds"]) == len(row["baseline_seconds"]) == 2
        medians = [np.median(row[f"{side}_seconds"]) for side in ("baseline", "ours")]
        assert row["ratio"] == pytest.approx(medians[0] / medians[1])
        assert row["equal_work"]
        assert min(row["ours_cold_seconds"], row["baseline_cold_seconds"], *row["ours_seconds"]) > 0
    assert "baseline_seconds" not in report["stages"]["explain_as_run"]
    iterations = report["stages"]["kmeans"]["iterations"]
    assert iterations["ours"] == iterations["baseline"]
    for side, peak in report["memory"]["explain"].items():
        assert peak >= report["memory"]["at_start"][side] > 1e7
    assert report["sides"]["ours"]["threads"] == report["sides"]["baseline"]["threads"] == len(os.sched_getaffinity(0))


def test_growth_is_measured_at_every_size(finished, report, tmp_path, monkeypatch):
    sizes = {
        "IMAGES": (100, 500),
        "PROTOTYPES": (8, 12),
        "CHECKPOINTS": (2, 10),
        "CHANNELS": (8, 16),
        "CHANNEL_ROWS": 300,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(benchmark_stages, name, value)
    arguments = [str(finished), "", "100", str(tmp_path / "weights"), "0"]
    sides, drawn = {}, []

    class Noting(Side):
        def call(self, name, **inputs):
            if name == "pca":
                drawn.append((inputs["features"], np.load(inputs["features"], mmap_mode="r").shape))
            return super().call(name, **inputs)

    try:
        for name in ("ours", "baseline"):
            sides[name] = Noting(name, arguments, tmp_path / f"{name}.log")
            sides["ours"].call("export")
        found = benchmark_stages.growth(sides, read_config(finished), tmp_path)
    finally:
        for side in sides.values():
            side.close()
    measured = [(row["images"], row["prototypes"], row["checkpoints"]) for row in found["explain"]]
    assert measured == [(100, 8, 10), (500, 8, 10), (100, 12, 10), (100, 8, 2)]
    assert all(row[name]["explain"] > 0 for row in found["explain"] for name in sides)
    assert [row["channels"] for row in found["pca"]] == [8, 16]
    # A worker would not read a name that it knows again.
    assert len({path for path, _ in drawn}) == len({shape for _, shape in drawn}) == 2
    table = benchmark_tables.growth({"machine": report["machine"], "growth": found})
    assert len([line for line in table.splitlines() if line.strip().startswith(("100 ", "500 "))]) == 4


def test_both_compute_the_same(report):
    found = report["differences"]
    assert found["forward"]["logits"] < CLOSE
    assert max(found["saliency_intensity"].values()) < CLOSE
    assert max(found["pca"].values()) < CLOSE_COEFFICIENTS
    assert found["kmeans"]["inertia"] < CLOSE
    assert found["assign"]["share_that_differs"] < CLOSE
    assert found["mapping"]["beta"] < CLOSE_COEFFICIENTS
    assert found["mapping"]["beta_groups"] < CLOSE_COEFFICIENTS
    assert found["train_step"]["losses"] < CLOSE
    assert found["end_to_end"]["confidence"] < CLOSE
    assert 0 < found["end_to_end"]["centroid_cosine_mean"] <= 1


REFUSED = {
    "no run": (["--workdir=/nowhere/run"], "holds no finished training"),
    "no workdir": ([], "--workdir is missing"),
    "a flag of run.py": (["--workdir=/nowhere/run", "--stage=train"], "--stage has no meaning"),
    "no folder": (["--workdir={run}", "--json=/nowhere/x.json"], "a folder that exists"),
    "another config": (["--workdir={run}", "--config.seed=3"], "seed: 0 -> 3"),
}


@pytest.mark.parametrize(("arguments", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_told_in_one_line(finished, arguments, told):
    done = python("experiments/benchmarks/benchmark.py", *SMALL, *(each.format(run=finished) for each in arguments))
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def baseline(finished, folder):
    from experiments.benchmarks.benchmark_ours import Implementation

    problem = problem_of(finished, None, 200, folder / "weights")
    (folder / "weights").mkdir()
    Implementation(problem).export()
    return torch_baseline.Implementation(problem)


def test_baseline_is_gradcam_as_captum_computes_it(baseline):
    from experiments.benchmarks.torch_models import Cut

    images, labels = baseline.problem.images[:16], baseline.problem.labels[:16]
    cut = Cut(baseline.network, baseline.tap)
    target = torch.from_numpy(labels).long()
    expected = LayerGradCam(cut, cut.tap).attribute(baseline.tensor(images), target, relu_attributions=True)
    logits, maps = baseline.explained(images, labels)
    torch.testing.assert_close(maps, expected[:, 0].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, cut(baseline.tensor(images)).detach(), rtol=1e-5, atol=1e-6)


def test_baseline_runs_without_jax(finished, folder):
    code = (
        "import sys; from experiments.benchmarks.benchmark_worker import Worker; "
        f"worker = Worker('baseline', {str(finished)!r}, None, 200, {str(folder)!r}, 0); "
        "assert 'torch' in sys.modules and 'jax' not in sys.modules"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_baseline_shifts_like_ours():
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1).repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    found = {bytes(image.numpy()) for image in torch_baseline.augmented(images, "shift")}
    edged = np.pad(images[0, :, :, 0].numpy(), 1, mode="edge")
    assert found == {edged[row : row + 8, column : column + 8].tobytes() for row in range(3) for column in range(3)}


def test_baseline_finds_planted_coefficients():
    rng = np.random.default_rng(0)
    dP, beta = rng.normal(size=(400, 3)), np.array([[1.0, -1.0], [0.0, 0.0], [0.5, 2.0]])
    dY = dP @ beta + 0.01 * rng.normal(size=(400, 2))
    folds = mapping.stratified_folds(np.zeros(400, int), 5, 0)
    found, r2 = sklearn_baseline.ridge_samples(dP, dY, folds)
    np.testing.assert_allclose(found, beta, atol=0.01)
    assert r2 > 0.99
    ids = rng.integers(-1, 40, 400)
    expected, _ = mapping.ridge_groups(dP, dY, ids)
    np.testing.assert_allclose(sklearn_baseline.ridge_groups(dP, dY, ids), expected, rtol=1e-6)


def test_every_convolution_of_a_network_is_timed():
    done = python("experiments/benchmarks/layer_times.py", "--model=cnn", "--repeats=1")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[1] for row in rows[:-1]] == ["3x3x1x32", "3x3x32x64", "3x3x64x64", "3x3x64x64"]
    assert all(float(figure) > 0 for figure in rows[-1][1:])
