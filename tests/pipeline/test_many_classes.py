"""A run that keeps some classes of each class's samples says of them what a run that keeps all says."""

import json
import shutil

import numpy as np
import pytest

import i2x_jax
from i2x_jax.config import InputError
from i2x_jax.data.dataset import Dataset
from i2x_jax.explanation import rivals
from tests import plain_ledger
from tests.own_networks import CHANNELS, plain_features, plain_head, weights

CLASSES, COUNT, STEPS = 8, 208, (0, 10, 30)
SETTINGS = {
    "seed": 3,
    "explain": {"num_prototypes": 4, "restarts": 1, "batch_size": 64, "max_pairs": 1},
    "refine": {"pair": ("c1", "c6")},
}


def data():
    """Noise with a bright bar whose height depends on the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT, dtype=np.int32) % CLASSES
    images = rng.integers(0, 90, (COUNT, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label] += 130
    return Dataset(images, labels, tuple(f"c{c}" for c in range(CLASSES)))


def held(seed):
    rng = np.random.default_rng(seed)
    return weights(seed) | {
        "classifier": np.float32(3 * rng.normal(size=(CHANNELS, CLASSES))),
        "bias": np.float32(rng.normal(size=CLASSES) / 10),
        "flat": np.float32(rng.normal(size=(16 * CHANNELS, CLASSES)) / 2),
    }


def flat_head(variables, features):
    return features.reshape(len(features), -1) @ variables["flat"] + variables["bias"]


def explain(folder, head=plain_head, **settings):
    checkpoints = [(step, held(seed)) for seed, step in enumerate(STEPS)]
    model = i2x_jax.OwnModel(plain_features, head)
    return i2x_jax.explain(model, checkpoints, data(), SETTINGS | {"explain": SETTINGS["explain"] | settings}, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return explain(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Three classes are kept, of confidence.npy too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "MANY_CLASSES", 4)
        run = explain(tmp_path_factory.mktemp("narrow") / "run", rivals=3)
        run.own_confidence  # noqa: B018 - read while the limit is what it was made with
        yield run


def sliced(values, kept):
    """[..., M, K, M] to [..., M, K, R]."""
    return np.stack([values[..., c, :, :][..., own] for c, own in enumerate(kept)], axis=-3)


def test_all_are_kept_of_few(whole):
    np.testing.assert_array_equal(whole.rivals, np.tile(np.arange(CLASSES), (CLASSES, 1)))
    plain_ledger.check_adds_up(whole)


def test_what_is_kept_is_what_all_would_say(whole, narrow):
    kept = narrow.rivals
    assert kept.shape == (CLASSES, 3)
    assert rivals.mutual(kept, 1, 6)
    np.testing.assert_array_equal(narrow.array("assignments"), whole.array("assignments"))
    for name in ("intensity", "account"):
        np.testing.assert_allclose(narrow.array(name), whole.array(name), atol=3e-6)
    found, expected = narrow.arrays("ledger"), whole.arrays("ledger")
    for name in ("seeing", "weighing", "seeing_error", "weighing_error"):
        np.testing.assert_allclose(found[name], sliced(expected[name], kept), atol=3e-6)
    np.testing.assert_allclose(found["bias"], np.take_along_axis(expected["bias"], kept[None], axis=2), atol=3e-6)
    np.testing.assert_allclose(found["path_difference"], expected["path_difference"], rtol=1e-3)
    assert (found["residual"] < plain_ledger.bound(found["largest_logit"])).all()
    found, expected = narrow.arrays("contributions"), whole.arrays("contributions")
    for name in ("mean", "std", "blank"):
        np.testing.assert_allclose(found[name], sliced(expected[name], kept), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["completeness_error"], expected["completeness_error"], atol=1e-5)


def test_confidences_are_those_kept_and_the_rest(whole, narrow):
    labels, kept = np.array(whole.array("labels")), narrow.rivals
    found, expected = np.array(narrow.array("confidence")), np.array(whole.array("confidence"))
    assert found.shape == (len(STEPS), len(labels), 4)
    of_kept = np.take_along_axis(expected, np.tile(kept[labels], (len(STEPS), 1, 1)), axis=2)
    np.testing.assert_allclose(found[..., :-1], of_kept, atol=1e-6)
    np.testing.assert_allclose(found[..., -1], 1 - of_kept.sum(-1), atol=1e-6)
    np.testing.assert_allclose(narrow.own_confidence, whole.own_confidence, atol=1e-6)


def test_accounts_add_up(narrow):
    """Of every sample to the change of its confidence, of every class to the change of the mean of each kept class."""
    labels, accounts = np.array(narrow.array("labels")), np.float64(narrow.array("account"))
    changes = np.diff(np.float64(narrow.array("confidence")), axis=0)
    ledger, kept = narrow.arrays("ledger"), narrow.rivals
    own = rivals.own_columns(kept)
    for t, change in enumerate(changes):
        allowed = plain_ledger.bound(ledger["largest_logit"][t])
        missed = accounts[t].sum(-1) - change[np.arange(len(labels)), own[labels]]
        assert np.abs(missed).max() <= allowed
        for label in range(CLASSES):
            found = (ledger["seeing"][t, label] + ledger["weighing"][t, label]).sum(0) + ledger["bias"][t, label]
            np.testing.assert_allclose(found, change[labels == label, :-1].mean(0), atol=allowed)


def test_what_a_reader_gets(whole, narrow):
    assert {(pair.a, pair.b) for pair in narrow.explanation.pairs} == {
        (f"c{a}", f"c{b}") for a, b in rivals.rival_pairs(narrow.rivals) if rivals.mutual(narrow.rivals, a, b)
    }
    one, other = narrow.explanation.pair("c1", "c6"), whole.explanation.pair("c1", "c6")
    assert one.told_apart == other.told_apart
    assert [each.prototype for each in one.separating] == [each.prototype for each in other.separating]
    assert (one.r2 is None) == (other.r2 is None)
    for name in ("c1", "c5"):
        for mine, theirs in zip(narrow.ledger(name).intervals, whole.ledger(name).intervals, strict=True):
            assert mine.after == pytest.approx(theirs.after, abs=1e-5)
            assert [each.prototype for each in mine.entries] == [each.prototype for each in theirs.entries]
            assert mine.bias == pytest.approx(theirs.bias, abs=1e-5)
            assert {each.rival for each in mine.entries} <= {f"c{c}" for c in narrow.rivals[int(name[1])]}
    for mine, theirs in zip(narrow.ledger_of_pair("c1", "c6"), whole.ledger_of_pair("c1", "c6"), strict=True):
        assert mine.in_a == pytest.approx(theirs.in_a, abs=1e-5)
    assert " were learned: confidence in " in narrow.summary()
    np.testing.assert_allclose(narrow.account(5).account, whole.account(5).account, atol=1e-5)
    assert (narrow.path / "report.html").stat().st_size > 10_000


def test_a_story_knows_what_is_predicted(whole, narrow, tmp_path, monkeypatch):
    """Also where that may be a class of which nothing is kept."""
    rows = range(0, COUNT * 7 // 10, 9)
    assert all(narrow.story(row).predicted == whole.story(row).predicted for row in rows)
    label = int(narrow.array("labels")[0])
    unsure = np.array(narrow.array("confidence"))
    unsure[-1, 0] = (0.1, 0.1, 0.1, 0.7)
    monkeypatch.setitem(narrow._opened, "confidence", (narrow._opened["confidence"][0], unsure))
    told = narrow.story(0)
    np.testing.assert_allclose(told.confidence, whole.array("confidence")[:, 0], atol=1e-5)
    assert told.label == f"c{label}"


def test_no_array_has_the_classes_twice(narrow):
    for path in narrow.path.glob("*.npz"):
        with np.load(path) as members:
            assert all(members[name].shape.count(CLASSES) < 2 for name in members.files), path.name
    assert all(np.load(path, mmap_mode="r").shape.count(CLASSES) < 2 for path in narrow.path.glob("*.npy"))


def test_classes_that_are_not_kept_of_each_other(narrow):
    a, b = next((a, b) for a in range(CLASSES) for b in range(a + 1, CLASSES) if not rivals.mutual(narrow.rivals, a, b))
    with pytest.raises(InputError, match=f"'c{a}' and 'c{b}' are not kept of each other's images; allowed"):
        narrow.ledger_of_pair(f"c{a}", f"c{b}")


def test_behind_another_head(tmp_path):
    whole, kept = (explain(tmp_path / name, flat_head, rivals=r) for name, r in (("whole", 0), ("kept", 3)))
    assert kept.rivals.shape == (CLASSES, 3)
    for name in ("seeing", "weighing"):
        found, expected = kept.arrays("ledger")[name], sliced(whole.arrays("ledger")[name], kept.rivals)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(kept.array("account"), whole.array("account"), atol=1e-5)
    np.testing.assert_allclose(
        kept.arrays("contributions")["mean"], sliced(whole.arrays("contributions")["mean"], kept.rivals), atol=1e-4
    )
    assert kept.arrays("mapping")["beta_by_class"].shape == (len(STEPS) - 1, CLASSES, 4, 3)


def test_without_a_ledger(whole, tmp_path):
    run = explain(tmp_path / "run", ledger="none")
    assert not run.has_ledger
    assert {path.name for path in whole.path.iterdir()} - {path.name for path in run.path.iterdir()} == {
        "ledger.npz",
        "account.npy",
    }
    np.testing.assert_array_equal(run.array("intensity"), whole.array("intensity"))
    with pytest.raises(InputError, match="has no ledger"):
        run.ledger("c1")
    # It is finished: the same call does nothing more.
    before = (run.path / "assignments.npy").stat().st_mtime_ns
    explain(tmp_path / "run", ledger="none")
    assert (run.path / "assignments.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("head", [plain_head, pytest.param(flat_head, marks=pytest.mark.slow)], ids=["linear", "flat"])
def test_a_ledger_of_some_images(head, tmp_path):
    """What it says of them is what a ledger of all says; the other files do not know of it."""
    whole, some = (explain(tmp_path / str(wanted), head, ledger=wanted) for wanted in ("all", 50))
    rows, labels = some.accounted, np.array(whole.array("labels"))
    assert np.bincount(labels[rows]).tolist() == [6] * CLASSES
    np.testing.assert_array_equal(some.array("account"), np.array(whole.array("account"))[:, rows])
    both = np.float64(some.arrays("ledger")["seeing"]) + some.arrays("ledger")["weighing"]
    for label in range(CLASSES):
        expected = np.array(whole.array("account"))[:, rows[labels[rows] == label], :-1].mean(1)
        np.testing.assert_allclose(both[:, label, :, label], expected, atol=1e-6)
        (last,) = some.ledger(f"c{label}", interval=STEPS[1:]).intervals
        own = some.own_confidence[:, rows[labels[rows] == label]].mean(1)
        assert (last.before, last.after) == pytest.approx(own[1:], abs=1e-6)
        assert sum(each.change for each in last.entries) + last.bias == pytest.approx(own[2] - own[1], abs=1e-5)
    for name in ("intensity", "confidence", "assignments"):
        np.testing.assert_array_equal(some.array(name), whole.array(name))
    np.testing.assert_array_equal(some.arrays("contributions")["mean"], whole.arrays("contributions")["mean"])
    other = int(np.setdiff1d(np.arange(len(labels)), rows)[0])
    np.testing.assert_allclose(some.account(other).account, whole.account(other).account, atol=1e-5)
    assert "48 of the" in (some.path / "report.html").read_text()


def test_more_rivals_than_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"explain\.rivals is 9; allowed: at most 8, the classes"):
        explain(tmp_path / "run", rivals=9)


def test_a_run_of_before_there_was_a_ledger_is_read_and_not_gone_on_with(whole, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(whole.path, folder)
    for name in ("ledger.npz", "account.npy", "prototype_features.npz", "rivals.npy"):
        (folder / name).unlink()
    found = dict(np.load(folder / "prototypes.npz"))
    np.savez(folder / "prototypes.npz", **{name: found[name] for name in set(found) - {"blank", "fitted_locations"}})
    header = json.loads((folder / "config.json").read_text())
    for name in ("max_locations", "rivals", "ledger"):
        del header["config"]["explain"][name]
    (folder / "config.json").write_text(json.dumps(header))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    run = i2x_jax.Run(folder)
    assert run.explanation == whole.explanation
    np.testing.assert_array_equal(run.rivals, whole.rivals)
    assert not run.has_ledger
    with pytest.raises(InputError, match="has no ledger"):
        run.ledger("c1")
    with pytest.raises(InputError, match=r"kept no ledger; allowed: .* explain in a new --workdir"):
        explain(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_groups_over_all_classes_need_all_confidences(tmp_path, monkeypatch):
    monkeypatch.setattr("i2x_jax.pipeline.stages.MANY_CLASSES", 4)
    with pytest.raises(InputError, match="group_by is 'global' with 8 classes; allowed: 'class'"):
        explain(tmp_path / "run", group_by="global")
    assert not (tmp_path / "run").exists()
