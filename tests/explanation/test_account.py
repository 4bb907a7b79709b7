"""Reading the ledger: sums that add up, rivals, errors, wavering."""

import numpy as np
import pytest

from i2x_jax.explanation import account

T, M, K = 4, 3, 5
CLASSES = ("cat", "dog", "é 7")
STEPS = np.array([0, 5, 20, 60])


def planted(seed=0):
    rng = np.random.default_rng(seed)
    ledger = {name: rng.normal(size=(T - 1, M, K, M)) / 20 for name in ("seeing", "weighing")}
    for name, values in ledger.items():
        ledger[name] = values - values.mean(-1, keepdims=True)  # what one class gains the others lose
    bias = rng.normal(size=(T - 1, M, M)) / 100
    return ledger | {"bias": bias - bias.mean(-1, keepdims=True)}


def confidence_of(ledger, label):
    changes = (ledger["seeing"] + ledger["weighing"])[:, label, :, label].sum(1) + ledger["bias"][:, label, label]
    return 0.3 + np.concatenate([[0], np.cumsum(changes)])


def read(ledger, label=1):
    return account.class_ledger(
        label,
        CLASSES,
        STEPS,
        ledger,
        np.arange(M),
        confidence_of(ledger, label),
        np.full((T - 1, K), 0.01),
        np.linspace(0, 1, K),
    )


def test_the_entries_and_the_bias_add_up_to_the_change():
    found = read(planted())
    assert found.name == "dog"
    assert [(each.from_step, each.to_step) for each in found.intervals] == [(0, 5), (5, 20), (20, 60)]
    for each in found.intervals:
        assert sum(entry.change for entry in each.entries) + each.bias == pytest.approx(each.after - each.before)
        assert all(entry.change == pytest.approx(entry.seeing + entry.weighing) for entry in each.entries)
        assert sorted(entry.prototype for entry in each.entries) == list(range(K))
        sizes = [abs(entry.change) for entry in each.entries]
        assert sizes == sorted(sizes, reverse=True)


def test_the_rival_is_the_class_that_moved_most_the_other_way():
    ledger = {name: np.zeros((T - 1, M, K, M)) for name in ("seeing", "weighing")} | {"bias": np.zeros((T - 1, M, M))}
    ledger["seeing"][0, 1, 2] = [-0.02, 0.1, -0.08]
    ledger["weighing"][1, 1, 3] = [0.05, -0.06, 0.01]
    first, second = (read(ledger).intervals[t].entries[0] for t in (0, 1))
    assert (first.prototype, first.rival, first.taken) == (2, "é 7", pytest.approx(0.08))
    assert (second.prototype, second.rival, second.taken) == (3, "cat", pytest.approx(-0.05))
    assert first.present == pytest.approx(0.5)
    assert "taken from é 7 0.080" in str(read(ledger))
    assert "given to cat 0.050" in str(read(ledger))


def test_another_class_reads_its_own_rows():
    ledger = planted()
    found = read(ledger, 0).intervals[2].entries[0]
    expected = ledger["seeing"][2, 0, found.prototype, 0]
    assert found.seeing == pytest.approx(expected)


def test_errors_are_those_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(T - 1, 50, K + 1))
    found = account.account_error(values)
    np.testing.assert_allclose(found, values[:, :, :K].std(1, ddof=1) / np.sqrt(50))
    np.testing.assert_array_equal(account.account_error(values[:, :1]), 0)


@pytest.mark.parametrize(
    ("amounts", "score"),
    [
        ([0.3, -0.1, 0.2], 0.2),
        ([0.3, 0.1, 0.2], 0),
        ([0.3, 0, -0.2], 0.2),
        ([0.0, 0.0], 0),
        ([-0.4, 0.5], 0.4),
    ],
)
def test_wavering_adds_the_smaller_amount_at_every_turn(amounts, score):
    assert account.wavering(np.array(amounts)) == pytest.approx(score)


def test_a_pair_is_moved_by_both_classes_samples():
    ledger = {name: np.zeros((T - 1, M, K, M)) for name in ("seeing", "weighing")}
    ledger["seeing"][:, 0, 1, 0], ledger["seeing"][:, 0, 1, 2] = [0.2, -0.1, 0.3], [0.1, 0.1, 0.1]
    ledger["weighing"][:, 2, 4, 2] = [0.0, 0.5, 0.0]
    found = account.pair_ledger(ledger, np.tile(np.arange(M), (M, 1)), np.array([30, 20, 10]), 0, 2)
    one, other = found[:2]
    assert {one.prototype, other.prototype} == {1, 4}
    by_id = {each.prototype: each for each in found}
    assert by_id[1].in_a == pytest.approx((0.1, -0.2, 0.2))
    assert by_id[1].in_b == (0, 0, 0)
    assert by_id[1].score == pytest.approx(0.75 * (0.1 + 0.2))  # three of four samples are of the first class
    assert by_id[4].in_b == pytest.approx((0, -0.5, 0))
    assert by_id[4].score == 0


def test_an_image_reads_as_a_ledger_whose_lines_are_its_confidence():
    values = np.array([[0.2, 0.05, -0.01], [0.0, -0.1, 0.03]])
    confidence = np.array([0.1, 0.34, 0.27])
    text = str(account.ImageAccount(np.array([0, 5, 20]), confidence, values))
    assert text.splitlines()[0] == "step 0: 0.100"
    assert text.splitlines()[1] == "step 5: 0.340 = +0.200 by 0, +0.050 by 1, -0.010 by the rest"
    assert text.splitlines()[2] == "step 20: 0.270 = -0.100 by 1, +0.030 by the rest"


def test_agreement_is_of_ranks_and_signs():
    assert account.agreement([1, 2, 3, -4], [10, 20, 30, -1]) == (pytest.approx(1), 1)
    rank, sign = account.agreement([1, 2, 3, np.nan], [-3, -2, -1, 5])
    assert (rank, sign) == (pytest.approx(1), 0)
    assert np.isnan(account.agreement([1, 2], [1, 2])).all()
    assert np.isnan(account.agreement([1, 1, 1], [1, 2, 3])).all()
