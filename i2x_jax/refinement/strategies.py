"""Fine-tuning by strategies, beside the controls that tell whether the strategy was the cause (DESIGN 2.9, 2.13)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from i2x_jax.config import STRATEGIES
from i2x_jax.data.dataset import Dataset, steps_per_pass
from i2x_jax.models.model import Model, Variables
from i2x_jax.training.loop import (
    Recipe,
    init_state,
    loss_and_accuracy,
    predict,
    recompute_batch_norm,
    run_steps,
    zero_totals,
)

FULL, RANDOM = "full", "random"
# They take no step of training: the one leaves locations out, the other fits the last layer anew.
UNTRAINED = ("drop", "dfr")


def phases(strategy: str, count: int = 1) -> tuple[str, ...]:
    """The sets a strategy trains on, one per phase: 'curated>full' is ('curated', 'full').

    Args:
      strategy: one of `config.STRATEGIES`, `ACTIONS`, `CONTROLS` or `RIVALS`.
      count: phases of an action and what is run beside it, whose set is the same in each; none of `UNTRAINED`.
    """
    if strategy in STRATEGIES:
        return tuple(strategy.split(">"))
    return () if strategy in UNTRAINED else (strategy,) * count


def left_out_sets(
    curated: np.ndarray, labels: np.ndarray, own: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The samples that each set leaves out; every control leaves out as many of each class as the curation.

    Args:
      curated: indices left out by the curation.
      labels: int `[N]`.
      own: `[T, N]`, confidence in the label.
      rng: draws the random control; a new one for every seed.

    Returns:
      For 'full', 'curated', 'random', 'ambiguous' (highest standard deviation of the label's confidence over
      checkpoints; Swayamdipta et al. 2020) and 'hard' (highest final loss): ascending indices.
    """
    rows = np.arange(len(labels))
    ambiguity, loss = own.std(axis=0), -own[-1]

    def most(score):
        parts = [
            rows[labels == label][np.argsort(-score[labels == label], kind="stable")[:count]]
            for label, count in zip(*np.unique(labels[curated], return_counts=True), strict=True)
        ]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    return {
        FULL: np.zeros(0, np.int64),
        "curated": np.sort(curated),
        RANDOM: most(rng.random(len(labels))),
        "ambiguous": most(ambiguity),
        "hard": most(loss),
    }


class Refining(NamedTuple):
    """What all strategies and seeds of a refinement share.

    Attributes:
      recipe: how a phase trains; the schedule of its optimizer spans one phase and starts again with each, and its
        seed is that of the phase.
      variables: where every strategy starts.
      train: the N training samples.
      test: what the outcome is measured on.
      calibration: images `[n, H, W, C]` whose BatchNorm statistics the outcome carries.
      pair: the two classes whose confusions are counted.
      rivals: int `[M, R]`, the predictions that are kept of each class's samples.
      phases: how many an action and its controls take.
      judged: more sets on which accuracy is measured, by the name that the outcome gives it, such as
        'unbiased_accuracy'.
      ready: the networks and variables that those of `UNTRAINED` are.
    """

    recipe: Recipe
    variables: Variables
    train: Dataset
    test: Dataset
    calibration: np.ndarray
    pair: tuple[int, int]
    rivals: np.ndarray
    phases: int = 1
    judged: Mapping[str, Dataset] = {}
    ready: Mapping[str, tuple[Model, Variables]] = {}


def without(train: Dataset, left_out: Mapping[str, np.ndarray]) -> dict[str, Dataset]:
    """The samples of each set, by its name, from those that it leaves out (`left_out_sets`)."""
    rows = np.arange(len(train.labels))
    return {name: train.take(np.setdiff1d(rows, each)) for name, each in left_out.items()}


def refine_seed(
    refining: Refining,
    sets: Mapping[str, Dataset],
    strategies: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[int], Any] = lambda count: None,
    keep: Callable[[str, Variables], Any] = lambda strategy, variables: None,
) -> dict[str, dict]:
    """Runs every strategy once from the same weights; a first phase that several share is run once.

    Args:
      refining: what is fine-tuned, and on what.
      sets: what each phase trains on, by its name; images may be such as `actions.Acted`.
      strategies: such as 'full', 'curated>full' or 'swap'.
      seeds: one for each phase: order and augmentation are the same for all strategies.
      progress: told after every step how many samples it took.
      keep: given every strategy, and the variables that it reached.

    Returns:
      For each strategy its `outcome`.
    """
    recipe = refining.recipe
    # The same for every strategy, however many samples its set has.
    steps = steps_per_pass(len(refining.train.labels), recipe.batch_size)

    def run_phase(start, name, seed):
        state = init_state(start, recipe.optimizer)
        state, _ = run_steps(recipe._replace(seed=seed), state, zero_totals(), sets[name], 0, steps, progress)
        return recompute_batch_norm(recipe.model, state.variables, refining.calibration)

    reached = {(): refining.variables}
    outcomes = {}
    # Shorter first, so that the phases a longer strategy shares are there already.
    for strategy in sorted(strategies, key=lambda name: len(phases(name, refining.phases))):
        names = phases(strategy, refining.phases)
        for depth in range(1, len(names) + 1):
            if names[:depth] not in reached:
                reached[names[:depth]] = run_phase(reached[names[: depth - 1]], names[depth - 1], seeds[depth - 1])
        model, variables = refining.ready.get(strategy, (recipe.model, reached[names]))
        outcomes[strategy] = judge(refining, model, variables)
        keep(strategy, variables)
    return outcomes


def judge(refining: Refining, model: Model, variables: Variables) -> dict:
    """The `outcome` of a classifier on the test samples, and its accuracy on the other sets."""

    def logits(dataset):
        return predict(model, variables, dataset, refining.recipe.batch_size)

    found = outcome(logits(refining.test), refining.test, refining.pair, refining.rivals)
    return found | {
        name: loss_and_accuracy(logits(dataset), dataset.labels)[1] for name, dataset in refining.judged.items()
    }


def count_phases(strategies: Sequence[str], count: int = 1) -> int:
    """How many phases `refine_seed` runs, shared ones counted once; actions and controls take `count` each."""
    named = [phases(name, count) for name in strategies]
    return len({each[:depth] for each in named for depth in range(1, len(each) + 1)})


def outcome(logits: np.ndarray, test: Dataset, pair: tuple[int, int], rivals: np.ndarray) -> dict:
    """How good a classifier is, from its logits `[N, M]` on the test samples.

    Args:
      logits: of the test samples.
      test: their labels and class names.
      pair: two classes.
      rivals: int `[M, R]` of `Run.rivals`.

    Returns:
      `accuracy` in 0..1, `pair_confusions` (samples of either class of the pair taken for the other),
      `worst_class` (name and accuracy), `confusion` `[M][R]` counts (label, prediction among its rivals).
    """
    num_classes = len(test.class_names)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (test.labels, logits.argmax(-1)), 1)
    recall = confusion.diagonal() / np.maximum(confusion.sum(1), 1)
    worst = int(recall.argmin())
    return {
        "accuracy": loss_and_accuracy(logits, test.labels)[1],
        "pair_confusions": int(confusion[pair] + confusion[pair[::-1]]),
        "worst_class": {"class": test.class_names[worst], "accuracy": float(recall[worst])},
        "confusion": np.take_along_axis(confusion, rivals, axis=1).tolist(),
    }
