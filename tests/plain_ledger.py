"""The ledger of DESIGN 2.5 once more, in float64 and plain NumPy, for a global average pool and a linear head."""

from typing import NamedTuple

import numpy as np

# What float32 leaves of the equality of both sides, by the largest |logit|: see `bound`.
ABSOLUTE, PER_LOGIT = 3e-6, 2e-7


def bound(largest_logit):
    """How far the parts of a change of confidence may miss it."""
    return ABSOLUTE + PER_LOGIT * largest_logit


class Checkpoint(NamedTuple):
    sums: np.ndarray  # [N, K, d], features over the locations of each prototype, over the number of locations
    weights: np.ndarray  # [d, M]
    bias: np.ndarray  # [M]

    @property
    def logits(self):
        return self.sums.sum(1) @ self.weights + self.bias

    @property
    def evidence(self):
        return self.sums @ self.weights


class Parts(NamedTuple):
    seeing: np.ndarray  # [N, K, M]
    weighing: np.ndarray  # [N, K, M]
    bias: np.ndarray  # [N, M]

    @property
    def total(self):
        return self.seeing + self.weighing


def checkpoint(features, assignments, num_prototypes, weights, bias):
    """A checkpoint from features [N, h, w, d] and assignments [N, h, w], location by location."""
    count, h, w, d = features.shape
    sums = np.zeros((count, num_prototypes, d))
    for row in range(h):
        for column in range(w):
            sums[np.arange(count), assignments[:, row, column]] += np.float64(features[:, row, column]) / (h * w)
    return Checkpoint(sums, np.float64(weights), np.float64(bias))


def log_confidence(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def logarithmic_means(before, after):
    before, after = log_confidence(before), log_confidence(after)
    same = np.abs(after - before) < 1e-9
    ratio = (np.exp(after) - np.exp(before)) / np.where(same, 1, after - before)
    return np.where(same, np.exp(before), ratio)


def share(values, means):
    """What additive parts [N, ..., M] of a change of logits are of the change of confidence."""
    means = np.expand_dims(means, tuple(range(1, values.ndim - 1)))
    return means * (values - (values * means).sum(-1, keepdims=True) / means.sum(-1, keepdims=True))


def parts(one, two):
    """The ledger between two checkpoints, in confidence."""
    means = logarithmic_means(one.logits, two.logits)
    return Parts(
        share((two.sums - one.sums) @ (one.weights + two.weights) / 2, means),
        share((two.sums + one.sums) / 2 @ (two.weights - one.weights), means),
        share(np.broadcast_to(two.bias - one.bias, means.shape), means),
    )


def coarse(one, two, labels):
    """The account [N, K+1] of the confidence of the labels between checkpoints that others lie between."""
    means = logarithmic_means(one.logits, two.logits)
    by_prototype = share(two.evidence - one.evidence, means)
    bias = share(np.broadcast_to(two.bias - one.bias, means.shape), means)
    return account(Parts(by_prototype, 0 * by_prototype, bias), labels)


def account(found, labels):
    """[N, K+1]: of the confidence of the labels, prototypes and last what belongs to no place."""
    rows = np.arange(len(labels))
    return np.concatenate([found.total[rows, :, labels], found.bias[rows, labels][:, None]], axis=1)


def check_adds_up(run, model_bound=bound):
    """Accounts add up to the change of the label's confidence, the ledger to the change of the mean of each class."""
    labels, confidence = np.array(run.array("labels")), np.float64(run.array("confidence"))
    ledger, accounts = run.arrays("ledger"), np.float64(run.array("account"))
    changes = np.diff(confidence, axis=0)
    for t, change in enumerate(changes):
        allowed = model_bound(ledger["largest_logit"][t])
        assert ledger["residual"][t] <= allowed
        missed = accounts[t].sum(-1) - change[np.arange(len(labels)), labels]
        assert np.abs(missed).max() <= allowed
        both = np.float64(ledger["seeing"][t]) + ledger["weighing"][t]
        for label in range(confidence.shape[2]):
            found = both[label].sum(0) + ledger["bias"][t, label]
            assert np.abs(found - change[labels == label].mean(0)).max() <= allowed
            # Over the classes, every part adds up to nothing.
            assert np.abs(both[label].sum(-1)).max() <= allowed
    assert np.abs(changes).max() > 0.01, "nothing has changed: nothing was tested"
