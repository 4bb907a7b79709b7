"""Every array and number that the explanation and the refinement write, against the plain `reference`.

One run is planted: arrays up to the evidence, drawn so that every rule of DESIGN 2.5 to 2.8 has something to decide. It
is explained twice, with different settings. The other is a real one, finished by the program.
"""

import json
import math
import pathlib

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from i2x_jax import Run
from i2x_jax.config import from_config_dict, to_dict
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.explain import map_changes
from tests import reference
from tests.report_run import NAMES as NAMES_OF_REPORT
from tests.report_run import report_run

# Both sides compute in float64: a sum of a few hundred products, in another order, differs by some 1e-14. A division by
# the smallest penalty, 1e-5 of the rows, multiplies that by 1e5; a null adds the choice between penalties, equal here.
EQUAL = {"rtol": 1e-7, "atol": 1e-8}
# Deviations of a pair's dP are taken of float32, with 24 bits.
SINGLE = {"rtol": 1e-6, "atol": 1e-8}
# JSON holds six significant digits: half a unit of the last is 5e-6 of a number that begins with 1.
PRINTED = {"rel": 6e-6, "abs": 1e-9}

NAMES = ("ant", "bee", "cat", "dog")
T, K, SIDE = 6, 6, 4
CONFUSED_HELD_OUT, CONFUSED_IN_TRAINING = (0, 2), (1, 3)
WAVERING = tuple((k, CONFUSED_HELD_OUT) for k in (1, 2)) + tuple((k, CONFUSED_IN_TRAINING) for k in (2, 4))
ABSENT_AND_UNUSED = 5
SETTINGS = {
    "label": {"explain": {"max_pairs": 2}, "refine": {"max_left_out": 0.35}},
    # Every other choice that the steps after the evidence know.
    "margin": {
        "seed": 3,
        "explain": {
            **{"fit": "groups", "group_by": "global", "pair_target": "margin"},
            **{"min_cluster_size": 6, "min_samples": 4, "ridge_lambda": 0.02},
        },
        "refine": {"pair": ("dog", "bee"), "max_left_out": 0.35},
    },
}


def softmax(logits):
    power = np.exp(logits - logits.max(-1, keepdims=True))
    return (power / power.sum(-1, keepdims=True)).astype(np.float32)


def planted_evidence(rng):
    """Labels, assignments, and intensity and confidence over time; classes have groups, and ten samples rest."""
    labels = rng.permutation(np.repeat(np.arange(4), (48, 40, 44, 36))).astype(np.int32)
    assignments = rng.integers(0, K - 1, (len(labels), SIDE, SIDE)).astype(np.int16)
    some = np.isin(labels, (2, 3)) & (rng.random(len(labels)) < 0.8)
    assignments[some, 0, :2] = ABSENT_AND_UNUSED
    area = np.stack([(assignments == k).sum((1, 2)) for k in range(K)], axis=1)
    present = area > 0
    groups = rng.integers(2, size=len(labels))
    # Prototype 0 stands out everywhere, and 3 in one of the groups of one class.
    standing_out = 6.0 * np.eye(K)[[0] * len(labels)] + 12.0 * np.eye(K)[[3]] * ((labels == 1) & (groups == 1))[:, None]
    intensity = [(rng.gamma(2.0, 0.5, present.shape) + standing_out) * present]
    logits = [0.3 * rng.normal(size=(len(labels), 4))]
    own = np.eye(4)[labels]
    weights = 0.8 * rng.normal(size=(K, 4))
    for t in range(T - 1):
        # In the first interval next to nothing happens.
        size = 0.004 if t == 0 else 1.0
        change = np.where(groups[:, None] == 1, 0.5, 0.1) * (1 + rng.normal(size=present.shape)) * present * size
        after = np.maximum(intensity[-1] + change, 0)
        wavering = weights.copy()
        # Some prototypes turn from interval to interval, each between the classes of a pair.
        for k, (a, b) in WAVERING:
            wavering[k, a], wavering[k, b] = (-1) ** t * np.array([1.5, -1.5])
        moved = (after - intensity[-1]) @ wavering * 0.5 + own * size * (0.2 + 0.4 * groups[:, None])
        moved += 0.05 * size * rng.normal(size=moved.shape)
        moved[(labels == 1) & (groups == 1), 1] += 2.0 * (t == 2)
        still = np.arange(len(labels)) < 10
        intensity.append(np.where(still[:, None], intensity[-1], after))
        logits.append(np.where(still[:, None], logits[-1], logits[-1] + moved))
    return labels, assignments, np.array(intensity, np.float32), np.array(logits)


def planted_validation(rng):
    """Labels and confidence: all classes come apart in the end, but for the pair confused most."""
    labels = np.arange(64, dtype=np.int32) % 4
    logits = [0.5 * rng.normal(size=(64, 4))]
    for t in range(T - 1):
        # The last class comes apart first.
        logits.append(logits[-1] + np.eye(4)[labels] * [0.5, 0.5, 0.5, 1.5] * t + 0.1 * rng.normal(size=(64, 4)))
    a, b = CONFUSED_HELD_OUT
    logits = np.array(logits)
    for t in range(T):
        logits[t, labels == a, b] += 0.5 * t * (t + 1) / 2 * rng.random((labels == a).sum())
        logits[t, labels == b, a] += 0.5 * t * (t + 1) / 2 * rng.random((labels == b).sum())
    return labels, softmax(logits)


def plant(folder: pathlib.Path, settings: dict) -> Run:
    """A run directory that lacks only what is computed from the evidence; its data are at hand."""
    rng = np.random.default_rng(0)
    labels, assignments, intensity, logits = planted_evidence(rng)
    # The pair that training confuses most is not the one that validation does.
    a, b = CONFUSED_IN_TRAINING
    logits[:, labels == a, b] += 0.7
    config = from_config_dict(
        {**settings, "explain": {"num_prototypes": K, "pca_dims": 3, **settings["explain"]}},
    )
    held_labels, held = planted_validation(rng)
    mean = rng.normal(size=(T, 4, K, 4)).astype(np.float32)
    mean[:, :, ABSENT_AND_UNUSED] = 0
    folder.mkdir()
    arrays = {
        "labels": labels,
        "steps": np.array([0, 1, 3, 8, 20, 50], np.int32),
        "assignments": assignments,
        "intensity": intensity,
        "confidence": softmax(logits),
    }
    if config.explain.pair_target == "margin":
        pair = [NAMES.index(name) for name in config.refine.pair]
        signs = np.where(np.arange(K) % 2, 1, -1) * np.linspace(0.5, 1.5, T)[:, None, None]
        noise = 0.1 * rng.normal(size=(T, np.isin(labels, pair).sum(), K))
        arrays["pair_intensity"] = (intensity[:, np.isin(labels, pair)] * signs + noise).astype(np.float32)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "validation.npz", labels=held_labels, confidence=held)
    np.savez(
        folder / "contributions.npz",
        mean=mean,
        std=rng.gamma(2.0, size=mean.shape).astype(np.float32),
        bias=np.zeros((T, 4), np.float32),
        completeness_error=np.zeros(T),
        blank=np.zeros_like(mean),
    )
    np.savez(
        folder / "prototypes.npz",
        mean=np.zeros(5, np.float32),
        components=np.zeros((3, 5), np.float32),
        explained_variance_ratio=np.zeros(3, np.float32),
        centroids=rng.normal(size=(K, 3)).astype(np.float32),
        inertia=np.float64(1),
        fitted_locations=np.int64(assignments.size),
        blank=np.zeros(1, np.float32),
    )
    splits = ("train", "validation", "test")
    provenance = {"versions": {}, "devices": [], "platform": "cpu", "git_revision": None}
    provenance["data_fingerprint"] = dict.fromkeys(splits, 64 * "0")
    header = {"config": to_dict(config), "provenance": provenance, "timing": {}, "peak_memory": {}}
    (folder / "config.json").write_text(json.dumps(header))
    run = Run(folder)
    images = np.zeros((len(labels), 8, 8, 1), np.uint8)
    held_out = Dataset(images[: len(held_labels)], held_labels, NAMES)
    run.splits = Splits(Dataset(images, labels, NAMES), held_out, held_out)
    return run


class Explained:
    """A run directory, and what the reference makes of its evidence.

    Attributes:
      folder: of the run.
      run: its arrays, as the reference reads them.
      groups, fallbacks, mapping, scores, curated, explanation: of the reference.
    """

    def __init__(self, folder, names):
        self.folder, self.run = folder, reference.Arrays(folder, names)
        # Small matrices: threads would wait for one another.
        with threadpool_limits(1):
            self.groups, self.fallbacks = reference.groups(self.run)
            self.mapping = self.find_mapping()
            self.scores = reference.all_scores(self.run)
        self.curated = reference.curated(self.run, self.scores)
        self.explanation = reference.explanation(self.run, self.groups, self.fallbacks, self.mapping, self.scores)

    def find_mapping(self):
        return reference.mapping(self.run, self.groups)

    def check_members(self, name, found):
        """Every member of a .npz file equals the reference's, and none lacks one."""
        with np.load(self.folder / name) as written:
            assert set(written.files) == set(found)
            for member, value in found.items():
                tolerance = SINGLE if name == "curated.npz" else EQUAL
                np.testing.assert_allclose(written[member], value, **tolerance, err_msg=member)


@pytest.fixture(scope="module", params=SETTINGS)
def planted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / request.param
    work = plant(folder, SETTINGS[request.param])
    map_changes(RunDirectory(folder), work)
    return Explained(folder, NAMES)


@pytest.fixture(scope="module")
def finished(base):
    """A real run; of its mapping the reference takes what is written, which the planted runs have compared."""

    class Finished(Explained):
        def find_mapping(self):
            with np.load(self.folder / "mapping.npz") as written:
                return dict(written)

    return Finished(report_run(base).path, NAMES_OF_REPORT)


def check_json(written, expected, where=""):
    """Same keys, lengths, order and types; numbers as near as they are printed, null for NaN."""
    if isinstance(expected, dict):
        assert written.keys() == expected.keys(), where
        for key, value in expected.items():
            check_json(written[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(written) == len(expected), where
        for i, value in enumerate(expected):
            check_json(written[i], value, f"{where}[{i}]")
    elif isinstance(expected, (float, np.floating)):
        if math.isnan(expected):
            assert written is None, where
        else:
            assert written == pytest.approx(expected, **PRINTED), where
    else:
        assert written == expected, where
        assert isinstance(written, bool) == isinstance(expected, (bool, np.bool_)), where


def test_groups(planted):
    np.testing.assert_array_equal(np.load(planted.folder / "groups.npy"), planted.groups)


def test_mapping(planted):
    planted.check_members("mapping.npz", planted.mapping)


def test_curated(planted):
    planted.check_members("curated.npz", planted.curated)


def test_explanation(planted):
    check_json(json.loads((planted.folder / "explanation.json").read_text()), planted.explanation)


def test_every_rule_has_something_to_decide(planted):
    """Otherwise the comparisons above would say less than they seem to."""
    mapping, found, run = planted.mapping, planted.explanation, planted.run
    assert {-2, -1, 0, 1} <= set(planted.groups.ravel().tolist())
    # The first interval is too still to measure, row by row and not as a whole; the others are not.
    assert np.isnan(mapping["r2"]).tolist() == [True] + [False] * (T - 2)
    assert np.isnan(mapping["r2_by_class"][0]).all()
    assert np.isfinite(mapping["r2_by_class"][1:]).all()
    spread = [np.sum((dY - dY.mean(0)) ** 2) for dY in run.dY]
    assert reference.NOTHING_TO_EXPLAIN < spread[0] < reference.NOTHING_TO_EXPLAIN * len(run.labels)
    # Those that could be taken for one another differ by more than the tolerance.
    for one, other in (("gain", "gain_total"), ("r2", "r2_class"), ("r2", "r2_total"), ("r2", "r2_groups")):
        assert (np.abs(mapping[one] - mapping[other])[1:] > 1e-4).all()
    for by_class, pooled in (("r2_by_class", "r2"), ("gain_total_by_class", "gain_total")):
        assert (np.abs(mapping[by_class] - mapping[pooled][:, None])[1:] > 1e-4).all()
    # A prototype that two classes lack, and that speaks for no class.
    assert not mapping["beta_by_class"][:, :2, ABSENT_AND_UNUSED].any()
    assert mapping["beta_by_class"][:, 2:, ABSENT_AND_UNUSED].all()
    assert found["prototypes"][ABSENT_AND_UNUSED]["supports"] == []
    assert any(each["above_null"] for each in found["intervals"])
    own = planted.scores[reference.refined_pair(run)]
    assert own["counted"].any()
    assert not own["counted"].all()
    assert all(len(planted.curated[name]) for name in ("prototypes", "left_out", "skipped"))
    for name in ("shared", "specialised"):
        assert 0 < sum(bool(each[name]) for each in found["per_class"]) < len(run.names)
    supports = [record for each in found["per_class"] for record in each["support"]]
    assert {record["disagrees"] for record in supports} == {False, True}
    assert len({each["told_apart"] for each in found["pairs"]}) > 2
    # By default the pair is that of validation, which is not the one of the training samples.
    if not run.settings["refine"]["pair"]:
        confidence, labels = run.confidence[-1].astype(float), run.labels
        mean = np.array([confidence[labels == c].mean(0) for c in run.classes])
        trained = np.argmax(np.triu(mean + mean.T, 1))
        assert np.unravel_index(trained, mean.shape) == CONFUSED_IN_TRAINING
        assert planted.curated["pair"].tolist() == list(CONFUSED_HELD_OUT)


def test_a_finished_run(finished):
    np.testing.assert_array_equal(np.load(finished.folder / "groups.npy"), finished.groups)
    finished.check_members("curated.npz", finished.curated)
    check_json(json.loads((finished.folder / "explanation.json").read_text()), finished.explanation)


def test_one_interval_of_a_finished_run(finished):
    t = int(np.nanargmax(finished.mapping["gain"]))
    with threadpool_limits(1):
        found = reference.mapping_of_samples(finished.run, t)
        found |= reference.mapping_of_groups(finished.run, t, finished.groups[t])
    assert found.keys() == finished.mapping.keys()
    for name, value in found.items():
        np.testing.assert_allclose(finished.mapping[name][t], value, **EQUAL, err_msg=name)


def test_the_refinement_of_a_finished_run(finished):
    written = json.loads((finished.folder / "refinement.json").read_text())
    confusions = {name: [seed["confusion"] for seed in entry["seeds"]] for name, entry in written["strategies"].items()}
    assert {len(seeds) for seeds in confusions.values()} == {finished.run.settings["refine"]["seeds"]}
    assert len(finished.curated["left_out"])
    check_json(written, reference.refinement(finished.run, confusions, finished.curated))
