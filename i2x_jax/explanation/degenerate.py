"""Where a run has come to nothing, counted and said in plain sentences. NumPy only.

Nothing here is an error: the figures are right, but a reader who is not told would take them for more than they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from i2x_jax.config import listed
from i2x_jax.explanation.types import Explanation

# In groups.npy; `grouping` has it too, but takes a second to import.
UNCHANGED = -2
# From which share on something is said: below, it is what a sound run has too.
IMAGES, PROTOTYPES, CHANNELS = 0.02, 0.2, 0.5
MOST = 0.5
ONE_PROTOTYPE = 0.9
# Fallbacks of `grouping` by which all changed images of a class are one group.
ONE_GROUP = ("too_few", "single", "all")
NAMES_SHOWN = 5


class Arrays(NamedTuple):
    """What is looked at of a run.

    Attributes:
      intensity: `[N, K]` at the last checkpoint.
      labels: int `[N]`.
      counts: int `[K]`, locations of each prototype.
      channel_mean: `[d]`, mean of the feature vectors.
      groups: int `[T-1, N]`, as in groups.npy.
      validation_labels: int `[V]`.
      validation_confidence: `[V, M]` at the last checkpoint.
    """

    intensity: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    channel_mean: np.ndarray
    groups: np.ndarray
    validation_labels: np.ndarray
    validation_confidence: np.ndarray


def degenerate(explanation: Explanation, arrays: Arrays) -> list[str]:
    """What a reader should be told before anything else, a sentence each; none of a sound run."""
    found = [
        _without_saliency(arrays, explanation.classes),
        _empty_prototypes(arrays.counts),
        _one_prototype(arrays.counts),
        _unseen_prototypes(arrays),
        _dead_channels(arrays.channel_mean),
        _unchanged(arrays.groups),
        _unmeasured(explanation),
        _one_group(explanation),
        _without_validation(arrays, explanation.classes),
        _never_predicted(arrays, explanation.classes),
    ]
    return [sentence for sentence in found if sentence]


def _without_saliency(arrays, classes):
    silent = ~(np.asarray(arrays.intensity) != 0).any(axis=1)
    if silent.mean() < IMAGES:
        return ""
    whole = [name for label, name in enumerate(classes) if (of := arrays.labels == label).any() and silent[of].all()]
    where = f", and so have all of {_names(whole, 'class', 'classes')}" if whole else ""
    return (
        f"{_of(silent.sum(), len(silent), 'images')} have no saliency at all at the last checkpoint{where}: nothing "
        "raises the logit that is explained, and they tell nothing of prototypes."
    )


def _empty_prototypes(counts):
    empty = int((counts == 0).sum())
    if not empty:
        return ""
    return (
        f"{_of(empty, len(counts), 'prototypes')} are empty: there are fewer different feature vectors than "
        "prototypes. Ask for fewer (explain.num_prototypes), or look at what the network does before the cut."
    )


def _one_prototype(counts):
    share = counts.max() / max(counts.sum(), 1)
    if share <= ONE_PROTOTYPE:
        return ""
    which = int(counts.argmax())
    return f"Prototype {which} holds {100 * share:.0f} % of all locations: the feature vectors hardly differ."


def _unseen_prototypes(arrays):
    unseen = (arrays.counts > 0) & ~(np.asarray(arrays.intensity) != 0).any(axis=0)
    if unseen.sum() <= PROTOTYPES * len(unseen):
        return ""
    return (
        f"{_of(unseen.sum(), len(unseen), 'prototypes')} have no saliency in any image at the last checkpoint: no "
        "logit that is explained draws on them."
    )


def _dead_channels(mean):
    # After a ReLU, a mean of exactly 0 is a channel that is 0 everywhere.
    dead = int((np.asarray(mean) == 0).sum())
    if dead <= CHANNELS * len(mean):
        return ""
    return f"{_of(dead, len(mean), 'feature channels')} are 0 in every image at the last checkpoint: they are dead."


def _unchanged(groups):
    never = (np.asarray(groups) == UNCHANGED).all(axis=0)
    if never.mean() <= MOST:
        return ""
    return (
        f"The confidence in {_of(never.sum(), len(never), 'images')} never changed between two checkpoints: there is "
        "hardly any change to explain. Look at the steps of the checkpoints."
    )


def _unmeasured(explanation):
    silent = sum(each.r2 is None for each in explanation.intervals)
    if silent <= MOST * len(explanation.intervals):
        return ""
    return (
        f"{_of(silent, len(explanation.intervals), 'intervals')} cannot be measured: too little confidence changed "
        "within the classes."
    )


def _one_group(explanation):
    kinds = [text.rpartition(": ")[2] for each in explanation.intervals for text in each.fallbacks]
    together = sum(kind in ONE_GROUP for kind in kinds)
    total = len(explanation.intervals) * (len(explanation.classes) if explanation.group_by == "class" else 1)
    if together <= MOST * total:
        return ""
    return (
        f"In {_of(together, total, 'groupings')} all images whose confidence changed are one group: groups tell "
        "nothing apart there."
    )


def _without_validation(arrays, classes):
    present = np.bincount(arrays.validation_labels, minlength=len(classes)) > 0
    missing = [name for name, there in zip(classes, present, strict=True) if not there]
    if not missing:
        return ""
    return (
        f"{_of(len(missing), len(classes), 'classes')} have no validation image ({listed(missing, NAMES_SHOWN)}): "
        "when they were told apart, and from what, is not known."
    )


def _never_predicted(arrays, classes):
    predicted = np.bincount(arrays.validation_confidence.argmax(axis=1), minlength=len(classes)) > 0
    present = np.bincount(arrays.validation_labels, minlength=len(classes)) > 0
    never = [name for name, is_it, has in zip(classes, predicted, present, strict=True) if has and not is_it]
    if not never:
        return ""
    return (
        f"{_of(len(never), len(classes), 'classes')} are predicted for no validation image at the last checkpoint "
        f"({listed(never, NAMES_SHOWN)}): the network has not learned them."
    )


def _of(count, total, what):
    share = f" ({100 * count / total:.0f} %)" if total >= 100 else ""
    return f"{count:,} of {total:,} {what}{share}"


def _names(names: Sequence[str], one: str, several: str) -> str:
    return f"{one if len(names) == 1 else several} {listed(names, NAMES_SHOWN)}"
