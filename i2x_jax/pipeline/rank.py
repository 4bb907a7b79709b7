"""The step `ranking`: what deserves a look first, and what leaving out each prototype does (DESIGN 2.12)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from i2x_jax.data.dataset import Dataset, Splits, batches
from i2x_jax.devices.mesh import ahead, divisible, fetch, own_rows_of, replicate, shard_own
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.evidence.dropping import dropped_predictions
from i2x_jax.explanation import ranking
from i2x_jax.models.model import Model, Variables
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import RANKING
from i2x_jax.results.opened_run import Run


def rank_prototypes(directory: RunDirectory, work: Run) -> None:
    """ranking.npz: evidence per location and what stands beside it, of every prototype (DESIGN 2.12)."""
    k, classes = work.config.explain.num_prototypes, work.dataset.class_names
    counted = ranking.census(work.array("assignments"), work.dataset.labels, k, len(classes))
    with directory.making("ranking") as folder:
        evidence, without = evidence_of(work, counted), left_out(directory, work, sets_of(work.splits))
        np.savez(folder / RANKING, **ranking.ranking(evidence, counted), **without)


def evidence_of(work: Run, counted: ranking.Census) -> np.ndarray:
    """Evidence per location at every checkpoint, float64 `[T, K, M]`, as the network's head allows."""
    if not work.model.linear_head:
        contributions = work.arrays("contributions")["mean"]
        return ranking.contribution_evidence(contributions, work.rivals, counted.samples, counted.locations.sum(1))
    head = jax.jit(work.model.linear_head)
    weights = [fetch(head(work.variables(step))[0]) for step in work.steps]
    found, (h, w, _) = work.arrays("prototype_features"), work.model.feature_shape
    return ranking.location_evidence(found["sums"], found["counts"], np.array(weights, np.float64), h * w)


def sets_of(splits: Splits) -> list[Dataset]:
    """The sets `ranking.DROPPED_ON`, in their order, of those that there are."""
    sets = splits.sets()
    return [sets[name] for name in ranking.DROPPED_ON if name in sets]


def left_out(directory: RunDirectory, work: Run, sets: Sequence[Dataset]) -> dict[str, np.ndarray]:
    """What leaving out each prototype does on some sets.

    Args:
      directory: where the bar is shown.
      work: the run.
      sets: of `sets_of`, or any other images with their labels.

    Returns:
      `samples`, `right` int64 `[Q]` and `gained`, `lost` int64 `[Q, K]` of `ranking.dropped`. Q is 0 behind a head
      that is no pool and linear layer: it has no pool to leave places out of.
    """
    k = work.config.explain.num_prototypes
    sets = sets if work.model.linear_head else []
    found = {name: [] for name in ("samples", "right", "gained", "lost")}
    if sets:
        variables = work.variables(work.steps[-1])
        with directory.progress_bar("leaving out", sum(len(each.labels) for each in sets), "image") as bar:
            for each in sets:
                predicted = predictions_without(
                    work.model, variables, work.arrays("prototypes"), each, work.config.explain.batch_size, bar.update
                )
                for name, value in ranking.dropped(predicted, each.labels).items():
                    found[name].append(value)
    return {
        name: np.array(values, np.int64).reshape(len(sets), *([k] if name in ("gained", "lost") else []))
        for name, values in found.items()
    }


def predictions_without(
    model: Model,
    variables: Variables,
    found: dict[str, np.ndarray],
    dataset: Dataset,
    batch_size: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> np.ndarray:
    """Classes predicted with each prototype left out of the pool, and last with none: int `[n, K+1]`.

    Args:
      model: one whose head is a global average pool and a linear layer.
      variables: of the last checkpoint, on which prototypes are defined.
      found: the members of prototypes.npz.
      dataset: n images of any set, and their labels.
      batch_size: samples at a time; the result does not depend on it.
      progress: told after every batch how many samples it held.
    """
    pca = prototypes.pca_of(found)
    pca, centroids = replicate((pca, found["centroids"]))

    per_batch = divisible(batch_size)

    def parts():
        for batch in batches(dataset, per_batch, own_rows_of(per_batch)):
            features = measuring.batch_features(model, variables, shard_own(batch.images, per_batch))
            places = measuring.assign_locations(pca, centroids, features)
            yield dropped_predictions(model, variables, features, places, len(found["centroids"])), batch.mask.sum()

    predicted = []
    for part, count in ahead(parts()):
        predicted.append(fetch(part)[:count])
        progress(int(count))
    return np.concatenate(predicted)
