"""run.py as a user drives it: in its own process, on a run so small that it takes seconds.

One finished run (`conftest.py`) is read, copied, killed or compared by everything here.
Programs compiled by one process are kept for the next.
"""

import itertools
import json
import subprocess
import sys

import jax
import jsonschema
import numpy as np
import pytest
from programs import (
    ROOT,
    contents,
    environment,
    kill_when,
    run,
    steps_printed,
    without,
)
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from experiments.tools.kill_and_resume import SMALL, differing
from i2x_jax import Run
from i2x_jax.explanation.ranking import contribution_evidence
from i2x_jax.pipeline import measure
from i2x_jax.results.files import STEPS
from i2x_jax.schema import load_schema
from tests import plain_ledger, reference
from tests.killed_run import killed_run

# What SMALL asks for: checkpoints, samples, classes, prototypes, PCA dimensions, feature channels, side of the map.
T, N, M, K, D, CHANNELS, SIDE = 8, 394, 10, 8, 4, 8, 4
VALIDATION, TEST = 211, 355

NPY = {
    "steps": (np.int32, (T,)),
    "labels": (np.int32, (N,)),
    "assignments": (np.int16, (N, SIDE, SIDE)),
    "intensity": (np.float32, (T, N, K)),
    "confidence": (np.float32, (T, N, M)),
    "account": (np.float32, (T - 1, N, K + 1)),
    "groups": (np.int32, (T - 1, N)),
}
NPZ = {
    "prototypes": {
        "mean": (CHANNELS,),
        "components": (D, CHANNELS),
        "centroids": (K, D),
        "explained_variance_ratio": (D,),
        "inertia": (),
        "fitted_locations": (),
        "blank": (1,),
    },
    "contributions": {
        "mean": (T, M, K, M),
        "std": (T, M, K, M),
        "bias": (T, M),
        "completeness_error": (T,),
        "blank": (T, M, K, M),
    },
    "ledger": {
        "seeing": (T - 1, M, K, M),
        "weighing": (T - 1, M, K, M),
        "seeing_error": (T - 1, M, K, M),
        "weighing_error": (T - 1, M, K, M),
        "bias": (T - 1, M, M),
        "residual": (T - 1,),
        "largest_logit": (T - 1,),
        "path_difference": (T - 2,),
        "path_error": (T,),
    },
    "prototype_features": {"counts": (K,), "sums": (T, K, CHANNELS)},
    "ranking": {
        **dict.fromkeys(("evidence", "present"), (K, M)),
        "course": (T, K),
        **dict.fromkeys(("label", "ranked", "exclusivity", "exclusive_label", "entropy", "since"), (K,)),
        "top_over_median": (),
        **dict.fromkeys(("samples", "right"), (1,)),
        **dict.fromkeys(("gained", "lost"), (1, K)),
    },
    "validation": {"labels": (VALIDATION,), "confidence": (T, VALIDATION, M)},
    "test": {"labels": (TEST,), "confidence": (T, TEST, M)},
    "mapping": {
        "beta": (T - 1, K, M),
        "beta_by_class": (T - 1, M, K, M),
        "beta_groups": (T - 1, K, M),
        "beta_groups_by_class": (T - 1, M, K, M),
        "intercept": (T - 1, M),
        "intercept_by_class": (T - 1, M, M),
        "ridge_lambda": (T - 1,),
        "ridge_lambda_groups": (T - 1,),
        "ridge_lambda_by_class": (T - 1, M),
        "ridge_lambda_groups_by_class": (T - 1, M),
        "r2": (T - 1,),
        "r2_class": (T - 1,),
        "r2_total": (T - 1,),
        "gain": (T - 1,),
        "gain_total": (T - 1,),
        "gain_null": (T - 1, 3),
        "r2_by_class": (T - 1, M),
        "gain_total_by_class": (T - 1, M),
        "gain_null_by_class": (T - 1, M, 3),
        "r2_groups": (T - 1,),
        "r2_groups_by_class": (T - 1, M),
    },
    "curated": {"pair": (2,), "pair_s": (T - 1, K), "pair_s_ci": (T - 1, K, 2), "pair_r2": (T - 1,)},
}
INTEGERS = ("counts", "labels", "pair", "prototypes", "left_out", "label", "exclusive_label", "since")


@pytest.fixture(scope="session")
def opened(finished):
    return Run(finished)


@pytest.fixture(scope="module")
def plain(opened):
    """Every checkpoint, as the plain ledger takes it."""
    assignments, found = np.array(opened.array("assignments")), []
    for step in opened.steps:
        variables = opened.variables(step)
        features = np.asarray(opened.model.features(variables, opened.dataset.images))
        found.append(plain_ledger.checkpoint(features, assignments, K, *opened.model.linear_head(variables)))
    return found


@pytest.fixture(scope="module")
def parts(plain):
    """What the plain ledger says of every interval."""
    return [plain_ledger.parts(*ends) for ends in itertools.pairwise(plain)]


class TestFiles:
    def test_every_file_is_there_and_nothing_else(self, finished):
        expected = {name for _, names in STEPS.values() for name in names} | {
            "config.json",
            "metrics.jsonl",
            "rows.npy",
            "checkpoints",
        }
        assert {path.name for path in finished.iterdir()} == expected
        assert not [path for path in finished.rglob("*") if "tmp" in path.name]

    @pytest.mark.parametrize("name", NPY)
    def test_arrays(self, finished, name):
        array = np.load(finished / f"{name}.npy", allow_pickle=False)
        assert (array.dtype, array.shape) == NPY[name]

    @pytest.mark.parametrize("name", NPZ)
    def test_members(self, finished, name):
        with np.load(finished / f"{name}.npz", allow_pickle=False) as file:
            members = dict(file)
        shapes = {key: value.shape for key, value in members.items()}
        assert NPZ[name].items() <= shapes.items()
        for key, value in members.items():
            assert value.dtype.kind == ("i" if key in INTEGERS or key == "fitted_locations" else value.dtype.kind)
            assert value.dtype.kind in "iufb"

    def test_members_of_one_length(self, opened):
        curated = opened.arrays("curated")
        assert curated["prototypes"].shape == curated["scores"].shape
        assert curated["pair_r2_null"].shape[0] == T - 1
        strategies = opened.refinement["strategies"].values()
        assert all(entry["applicable"] for entry in strategies) == bool(len(curated["left_out"]))
        assert set(opened.array("labels")[curated["left_out"]]) <= set(curated["pair"])

    def test_groups_and_steps_are_what_they_say(self, opened):
        assert opened.array("groups").min() >= -2
        steps = opened.steps
        assert steps[0] == 0
        assert (np.diff(steps) > 0).all()
        assert {int(path.name) for path in (opened.path / "checkpoints").iterdir()} == set(steps.tolist())

    @pytest.mark.parametrize("name", ["config", "explanation", "refinement"])
    def test_json_validates(self, finished, name):
        jsonschema.validate(
            json.loads((finished / f"{name}.json").read_text()),
            load_schema(name),
        )

    def test_metrics_validate_line_by_line(self, finished, opened):
        schema = load_schema("metrics")
        for line in (finished / "metrics.jsonl").read_text().splitlines():
            jsonschema.validate(json.loads(line), schema)
        assert [line["step"] for line in opened.metrics if line["split"] == "validation"] == opened.steps.tolist()


class TestRecomputed:
    """From the run directory and `Run` alone."""

    def test_saliency_and_intensity(self, opened):
        model, dataset, assignments = opened.model, opened.dataset, opened.array("assignments")
        chosen = np.random.default_rng(5).choice(N, 3, replace=False)
        intensity = opened.array("intensity")
        for t, step in enumerate(opened.steps):
            variables = opened.variables(step)
            features = model.features(variables, dataset.images[chosen])
            for place, i in enumerate(chosen):

                def logit(feature_map, label=dataset.labels[i], variables=variables):
                    return model.head(variables, feature_map[None])[0, label]

                gradient = np.float64(jax.grad(logit)(features[place]))
                saliency = np.maximum(np.float64(features[place]) @ gradient.mean((0, 1)), 0)
                expected = [
                    saliency[assignments[i] == k].mean() if (assignments[i] == k).any() else 0 for k in range(K)
                ]
                np.testing.assert_allclose(intensity[t, i], expected, rtol=1e-4, atol=1e-6)
        assert intensity.max() > 0.1

    def test_prototypes_and_assignments(self, opened):
        features = opened.model.features(opened.variables(opened.steps[-1]), opened.dataset.images)
        rows = np.asarray(features, np.float64).reshape(-1, CHANNELS)
        found = opened.arrays("prototypes")
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-4, atol=1e-5)
        values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
        order = np.argsort(-values)[:D]
        np.testing.assert_allclose(found["explained_variance_ratio"], values[order] / values.sum(), rtol=1e-3)
        np.testing.assert_allclose(np.abs(np.sum(found["components"] * vectors[:, order].T, axis=1)), 1, atol=1e-3)
        points = (rows - found["mean"]) @ found["components"].T.astype(np.float64)
        distances = np.sum((points[:, None] - found["centroids"]) ** 2, axis=-1)
        nearest = distances.argmin(1)
        assigned = opened.array("assignments").reshape(-1)
        two = np.sort(distances, axis=1)
        clear = two[:, 1] - two[:, 0] > 1e-4 * two[:, 1]  # the others are ties to float32
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(assigned[clear], nearest[clear])
        counts = np.bincount(assigned, minlength=K)
        np.testing.assert_array_equal(opened.arrays("prototype_features")["counts"], counts)
        # Locations are so few that all are fitted on.
        assert found["fitted_locations"] == len(rows)
        assert (np.diff(counts) <= 0).all()
        np.testing.assert_allclose(found["inertia"], distances.min(1).sum(), rtol=1e-3)
        np.testing.assert_allclose(found["blank"], opened.dataset.images.mean((0, 1, 2)), rtol=1e-6)

    def test_accounts_and_ledger_add_up(self, opened):
        plain_ledger.check_adds_up(opened)

    def test_accounts(self, opened, parts):
        found, labels = opened.array("account"), opened.array("labels")
        for t, part in enumerate(parts):
            np.testing.assert_allclose(found[t], plain_ledger.account(part, labels), rtol=1e-4, atol=2e-6)

    def test_ledger_and_its_standard_errors(self, opened, plain, parts):
        ledger, labels = opened.arrays("ledger"), opened.array("labels")
        for t, part in enumerate(parts):
            for label in range(M):
                rows = labels == label
                for name in ("seeing", "weighing", "bias"):
                    values = getattr(part, name)[rows]
                    np.testing.assert_allclose(ledger[name][t, label], values.mean(0), rtol=1e-4, atol=2e-6)
                    if name != "bias":
                        error = values.std(0) / np.sqrt(rows.sum())
                        # A deviation is the root of a difference of squares: half of the digits are lost.
                        np.testing.assert_allclose(ledger[f"{name}_error"][t, label], error, rtol=1e-3, atol=1e-5)
            largest = max(np.abs(each.logits).max() for each in plain[t : t + 2])
            assert ledger["largest_logit"][t] == pytest.approx(largest, rel=1e-4)
        assert max(np.abs(ledger["seeing"]).max(), np.abs(ledger["weighing"]).max()) > 0.01
        np.testing.assert_array_equal(ledger["path_error"], 0)

    def test_how_far_two_intervals_at_once_are_from_both(self, opened, plain, parts):
        labels = opened.array("labels")
        for t in range(T - 2):
            once = plain_ledger.coarse(plain[t], plain[t + 2], labels)
            twice = sum(plain_ledger.account(part, labels) for part in parts[t : t + 2])
            expected = np.abs(once - twice).sum() / np.abs(once).sum()
            assert opened.arrays("ledger")["path_difference"][t] == pytest.approx(expected, rel=1e-3, abs=1e-5)

    def test_features_of_prototypes_and_contributions(self, opened, plain):
        features, contributions = opened.arrays("prototype_features"), opened.arrays("contributions")
        labels, assignments = opened.array("labels"), np.array(opened.array("assignments"))
        colour = np.round(opened.arrays("prototypes")["blank"]).astype(np.uint8)
        blank = np.broadcast_to(colour, (1, *opened.dataset.images.shape[1:]))
        for t, held in enumerate(plain):
            np.testing.assert_allclose(features["sums"][t], held.sums.sum(0) * SIDE**2, rtol=1e-4, atol=1e-4)
            seen = np.float64(opened.model.features(opened.variables(opened.steps[t]), blank))
            empty = plain_ledger.checkpoint(
                np.repeat(seen, N, axis=0), assignments, K, held.weights, held.bias
            ).evidence
            for label in range(M):
                rows = labels == label
                for name, values in (("mean", held.evidence), ("blank", empty)):
                    expected = values[rows].mean(0)
                    np.testing.assert_allclose(contributions[name][t, label], expected, rtol=1e-4, atol=1e-5)
                spread = held.evidence[rows].std(0)
                np.testing.assert_allclose(contributions["std"][t, label], spread, rtol=1e-3, atol=1e-3)

    def test_ranking(self, opened, plain, finished):
        evidence = reference.evidence_per_location(
            opened.arrays("prototype_features"), [held.weights for held in plain], SIDE**2
        )
        found = opened.arrays("ranking")
        np.testing.assert_allclose(found["evidence"], evidence[-1], rtol=1e-4, atol=1e-6)
        # Behind this head contributions tell the same.
        counts = opened.arrays("prototype_features")["counts"]
        kept, samples = np.tile(np.arange(M), (M, 1)), np.bincount(opened.array("labels"))
        told = opened.arrays("contributions")["mean"], kept, samples, counts
        np.testing.assert_allclose(contribution_evidence(*told), evidence, rtol=1e-3, atol=1e-5)
        run = reference.Arrays(finished, opened.explanation.classes)
        expected = reference.ranking(run, evidence)
        assert expected.keys() | {"samples", "right", "gained", "lost"} == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)

    def test_leaving_prototypes_out_of_the_pool(self, opened):
        validation, found = opened.splits.validation, opened.arrays("ranking")
        variables, prototypes = opened.variables(opened.steps[-1]), opened.arrays("prototypes")
        features = np.asarray(opened.model.features(variables, validation.images))
        points = (features - prototypes["mean"]) @ prototypes["components"].T
        places = ((points[..., None, :] - prototypes["centroids"]) ** 2).sum(-1).argmin(-1)
        right = reference.right_without(
            features, places, K, *map(np.asarray, opened.model.linear_head(variables)), validation.labels
        )
        assert found["samples"] == [VALIDATION]
        # Ties between two classes, or two centroids, are settled by rounding: none of so few images here is one.
        assert found["right"] == [right[:, K].sum()]
        accuracy = next(line["accuracy"] for line in reversed(opened.metrics) if line["split"] == "validation")
        assert found["right"] / VALIDATION == pytest.approx(accuracy)
        np.testing.assert_array_equal(found["gained"][0], (right[:, :K] & ~right[:, K:]).sum(0))
        np.testing.assert_array_equal(found["lost"][0], (right[:, K:] & ~right[:, :K]).sum(0))
        assert found["lost"].any()

    def test_confidence_of_the_last_checkpoint(self, opened):
        predicted = opened.array("confidence")[-1].argmax(-1)
        accuracy = next(line["accuracy"] for line in reversed(opened.metrics) if line["split"] == "train")
        assert (predicted == opened.array("labels")).mean() == pytest.approx(accuracy, abs=1e-12)

    def test_beta_of_groups_by_the_printed_formula(self, opened):
        intensity, confidence, groups = (opened.array(name) for name in ("intensity", "confidence", "groups"))
        labels, mapping = opened.array("labels"), opened.arrays("mapping")

        def beta(dP, dY, keys):
            present = sorted(key for key in set(keys) if key[1] >= 0)
            if not present:
                return np.full((K, M), np.nan)
            inside = [np.array([key == one for key in keys]) for one in present]
            pi = np.array([dP[rows].mean(0) for rows in inside])
            change = np.array([dY[rows].mean(0) for rows in inside])
            penalty = 1e-2 * np.trace(pi @ pi.T) / len(pi)
            if penalty == 0:
                return np.zeros((K, M))
            return np.linalg.inv(pi.T @ pi + penalty * np.eye(K)) @ pi.T @ change

        for t in range(T - 1):
            dP, dY = (np.diff(values[t : t + 2].astype(np.float64), axis=0)[0] for values in (intensity, confidence))
            keys = list(zip(labels.tolist(), groups[t].tolist(), strict=True))
            np.testing.assert_allclose(mapping["beta_groups"][t], beta(dP, dY, keys), rtol=1e-5, atol=1e-5)
            for label in range(M):
                rows = np.flatnonzero(labels == label)
                expected = beta(dP[rows], dY[rows], [keys[row] for row in rows])
                np.testing.assert_allclose(mapping["beta_groups_by_class"][t, label], expected, rtol=1e-5, atol=1e-5)
        assert np.isfinite(mapping["beta_groups"][-1]).all()

    def test_r2_and_gain_by_scikit_learn(self, opened):
        labels, mapping = opened.array("labels"), opened.arrays("mapping")
        compared = 0
        for t in range(T - 1):
            dP, dY = (
                np.diff(opened.array(name)[t : t + 2].astype(np.float64), axis=0)[0]
                for name in ("intensity", "confidence")
            )
            if np.isnan(mapping["r2"][t]):
                assert np.sum((dY - dY.mean(0)) ** 2) / N < 2e-4
                continue
            errors = np.zeros(4)
            for train, held in StratifiedKFold(5, shuffle=True, random_state=t).split(dP, labels):
                scaler = StandardScaler().fit(dP[train])
                x, x_held = scaler.transform(dP[train]), scaler.transform(dP[held])
                model = RidgeCV(np.logspace(-3, 3, 13)).fit(x, dY[train])
                means = np.array([dY[train][labels[train] == label].mean(0) for label in range(M)])
                x_means = np.array([x[labels[train] == label].mean(0) for label in range(M)])
                inside = Ridge(1.0, fit_intercept=False).fit(
                    x - x_means[labels[train]], dY[train] - means[labels[train]]
                )
                class_error = dY[held] - means[labels[held]]
                errors += (
                    np.sum((dY[held] - model.predict(x_held)) ** 2),
                    np.sum((dY[held] - dY[train].mean(0)) ** 2),
                    np.sum((class_error - inside.predict(x_held - x_means[labels[held]])) ** 2),
                    np.sum(class_error**2),
                )
            assert mapping["r2"][t] == pytest.approx(1 - errors[0] / errors[1], abs=0.05)
            if np.isfinite(mapping["gain"][t]):
                assert mapping["gain"][t] == pytest.approx(1 - errors[2] / errors[3], abs=0.05)
                compared += 1
        assert compared >= 2


# run.py with so few rows a block that there are ten.
IN_BLOCKS = """
from i2x_jax.command import main
from i2x_jax.pipeline import measure
measure.ROWS_PER_BLOCK = 40
main()
"""


def test_killed_in_each_stage_it_goes_on_and_ends_equal(base, finished):
    assert differing(killed_run(base, finished), finished) == ["tensorboard (missing)"]


def blocks_done(partial):
    """How many blocks a stopped measurement need not measure again."""
    path = partial / "working" / measure.SUMS
    return int(np.load(path)[measure.BLOCKS]) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 4])
def test_killed_between_blocks_it_goes_on_with_the_next(base, finished, tmp_path, block):
    steps = tuple(STEPS)[2:]
    workdir = without(steps, finished, tmp_path / "run")
    program = [sys.executable, "-c", IN_BLOCKS, f"--workdir={workdir}", *SMALL, "--stage=explain"]
    partial = workdir / ".partial-evidence"
    kill_when(base, workdir, lambda: blocks_done(partial) > block, arguments=program)
    done = blocks_done(partial)
    assert block < done < 9
    # What was done is not done again: that would mend these rows.
    rows = np.load(partial / "account.npy", mmap_mode="r+")
    before = rows[:, : 40 * done].copy()
    rows[:, : 40 * done] = 7
    rows.flush()
    kill_when(base, workdir, lambda: blocks_done(partial) > done, arguments=program)
    rows = np.load(partial / "account.npy", mmap_mode="r+")
    assert (rows[:, : 40 * done] == 7).all()
    assert (np.abs(rows[:, 40 * done : 40 * (done + 1)]) <= 1).all()
    rows[:, : 40 * done] = before
    rows.flush()
    done = subprocess.run(program, env=environment(base), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = without(steps, finished, tmp_path / "whole")
    program[3] = f"--workdir={whole}"
    subprocess.run(program, env=environment(base), cwd=ROOT, check=True, capture_output=True)
    assert differing(workdir, whole) == []
    assert not [path.name for path in workdir.iterdir() if path.name.startswith(".")]


def test_another_seed_is_another_run(base, finished, tmp_path):
    output = run(base, tmp_path / "run", "--config.seed=1", "--stage=train")
    assert steps_printed(output, "done") == ["train"]
    assert "Accuracy at step" in output
    different = differing(tmp_path / "run", finished)
    steps = [int(path.name) for path in (finished / "checkpoints").iterdir()]
    assert {"config.json", "metrics.jsonl", *(f"checkpoints/{step}" for step in steps)} <= set(different)


def test_a_finished_run_is_left_alone(base, finished):
    before = contents(finished)
    output = run(base, finished)
    assert output.startswith("Nothing to do: train, explain, refine, report already done.\n")
    assert "Refinement on the test set" in output
    assert contents(finished) == before
