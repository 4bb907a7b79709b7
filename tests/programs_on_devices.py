"""Computes the same on however many devices and processes it is given, for `test_distributed.py` to compare.

    python -m tests.programs_on_devices OUTPUT.npz [COORDINATOR NUM_PROCESSES PROCESS_ID]

Every program starts from numbers drawn on the host, never from what another program computed here: nothing but the
distribution differs between two outputs.
"""

import sys

import jax
import numpy as np

from i2x_jax import models
from i2x_jax.data import dataset as data
from i2x_jax.devices import mesh as distributed
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.models import Tapped
from i2x_jax.pipeline import measure, rank, summing
from i2x_jax.pipeline import prototypes as stage_prototypes
from i2x_jax.training import loop as training
from tests.helpers import drawn

SEED, STEPS, BATCH, PROTOTYPES = 3, 5, 32, 6
MEASURING = measuring.Measuring(PROTOTYPES)
# More than one block of `stage_prototypes.blocks` on a CPU, the last one not full.
POINTS = (20_001, 5)


def trained(model, variables, dataset):
    """Parameters and exact BatchNorm statistics after a few steps."""
    optimizer = training.make_optimizer("adamw", 4e-3, 1e-2, 2 * STEPS, 0.1)
    state, totals = training.run_steps(
        training.Recipe(model, optimizer, "shift", BATCH, SEED),
        training.init_state(variables, optimizer),
        training.zero_totals(),
        dataset,
        0,
        STEPS,
    )
    variables = training.recompute_batch_norm(model, state.variables, training.batch_norm_images(dataset, SEED))
    variables, totals = distributed.fetch((variables, totals))
    return {
        **{
            f"trained {jax.tree_util.keystr(path)}": leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        },
        "loss": totals.loss,
        "correct": totals.correct,
    }


def measured(model, variables, dataset, rng):
    """What two checkpoints take from prototypes, and the ledger; rows that another process writes stay NaN."""
    h, w, d = model.feature_shape
    count, classes = len(dataset.labels), len(dataset.class_names)
    # Biases that do not stay 0.
    other = jax.tree.map(
        lambda leaf: leaf + rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32), drawn(model, SEED + 1)
    )
    held = distributed.replicate([variables, other])
    pca = prototypes.Pca(rng.uniform(size=d), np.eye(d)[:4], np.zeros(4))
    shared = pca, rng.normal(size=(PROTOTYPES, 4)), rng.uniform(0, 1, (1, h, w, d))
    pca, centroids, blank = distributed.replicate(jax.tree.map(np.float32, shared))
    rivals = distributed.replicate(np.tile(np.arange(classes, dtype=np.int32), (classes, 1)))
    checkpoints = measure.Checkpoints(
        model, MEASURING, held.__getitem__, [Tapped(blank), Tapped(blank + 0.1)], pca, centroids, rivals
    )
    rows = measure.Rows(
        assignments=np.full((count, h * w), np.nan, np.float32),
        intensity=np.full((2, count, PROTOTYPES), np.nan, np.float32),
        confidence=np.full((2, count, classes), np.nan, np.float32),
        account=np.full((1, count, PROTOTYPES + 1), np.nan, np.float32),
        margin=None,
    )
    sums = measure.measure_block(checkpoints, dataset, rows, np.arange(2), 0, BATCH)
    # All of them: of batches that nobody waits for, some are read ahead and some are not.
    first, *_ = data.batches(dataset, BATCH, distributed.own_rows_of(BATCH))
    images, labels = distributed.shard_own(first.images, BATCH), distributed.shard(first.labels)
    tapped = measuring.batch_tapped(model, held[1], images)
    places = measuring.assign_locations(pca, centroids, tapped.features)
    batch = measuring.take(model, MEASURING, held[1], tapped, labels, places, blank)
    counts = np.maximum(np.bincount(dataset.labels, minlength=classes), 1)[:, None, None]
    mean, std = summing.moments_of(sums["contribution 0"], sums["contribution_square 0"], counts)
    return {
        "maps": distributed.fetch(batch.maps),
        **{
            f"own {name}": np.moveaxis(values, -2, 0).reshape(count, -1)
            for name, values in rows._asdict().items()
            if values is not None
        },
        "logits": training.predict(model, variables, dataset, BATCH),
        "contributions": mean,
        "contributions_std": std,
        **{f"ledger {name}": sums[f"{name} 0"] for name in ("seeing", "weighing", "bias")},
        "features of prototypes": sums["features 1"],
    }


def clustered(model, variables, dataset, rng):
    """PCA of feature vectors; and of points drawn, their nearest centroids and one step of Lloyd's iterations."""
    moments = None
    for batch in data.batches(dataset, BATCH):
        rows = model.features(variables, distributed.shard(batch.images)).reshape(-1, model.feature_shape[2])
        weights = distributed.shard(batch.mask.repeat(len(rows) // BATCH).astype(np.float32))
        if moments is None:
            moments = prototypes.moments_start(rows, weights)
        else:
            moments = prototypes.moments_add(moments, rows, weights)
    pca = prototypes.pca(moments, 4)
    points, centroids = (rng.normal(size=shape).astype(np.float32) for shape in (POINTS, (PROTOTYPES, POINTS[1])))
    blocks = list(stage_prototypes.blocks(points))
    step = prototypes.lloyd(*zip(*blocks, strict=True), centroids, max_iterations=1, threshold=0)
    nearest = np.concatenate([distributed.fetch(prototypes.assign(block, centroids)) for block, _ in blocks])
    return {
        "pca_mean": pca.mean,
        "pca_components": pca.components,
        "pca_ratio": pca.explained_variance_ratio,
        "points": points,
        "start": centroids,
        "assignments": nearest[: len(points)],
        "centroids": step.centroids,
        "inertia": step.inertia,
        "whole blocks": len(blocks),
    }


class Counted:
    """Images that count how often each of their rows is read."""

    def __init__(self, images):
        self._images, self.shape, self.dtype = images, images.shape, images.dtype
        self.read = np.zeros(len(images), np.int64)

    def __getitem__(self, rows):
        np.add.at(self.read, rows, 1)
        return self._images[rows]


def rows_read(model, variables, dataset, rng):
    """How often this process reads each row, in each pass over the images; and the mean colour of all of them."""
    found, (h, w, d) = {}, model.feature_shape
    sample, colour = np.arange(0, len(dataset.labels) * h * w, 5), []
    recipe = training.Recipe(model, training.make_optimizer("sgd", 0.1, 0, 3, 0), "none", BATCH, SEED)
    state = training.init_state(variables, recipe.optimizer)
    parts = {"mean": rng.uniform(size=d), "components": np.eye(d)[:4], "explained_variance_ratio": np.ones(4)}
    parts = jax.tree.map(np.float32, parts | {"centroids": rng.normal(size=(PROTOTYPES, 4))})
    for name, run in {
        "training": lambda each: training.run_steps(recipe, state, training.zero_totals(), each, 0, 3),
        "predicting": lambda each: training.predict(model, variables, each, BATCH),
        "features": lambda each: colour.append(
            stage_prototypes.sampled_features(model, variables, each, BATCH, sample)[1]
        ),
        "measuring": lambda each: measured(model, variables, each, np.random.default_rng(SEED)),
        "leaving out": lambda each: rank.predictions_without(model, variables, parts, each, BATCH),
    }.items():
        images = Counted(dataset.images)
        run(dataset._replace(images=images))
        found[f"read {name}"] = images.read
    return found | {"colour": colour[0]}


def main(output, coordinator=None, num_processes=None, process_id=None):
    """Runs every program and saves what each made."""
    if coordinator:
        distributed.start(coordinator, int(num_processes), int(process_id), cluster=False)
    dataset = data.load_splits("digits", 0.15, max_train=210).train
    model = models.create("cnn", num_classes=10, image_shape=(8, 8, 1), width=4)
    variables = drawn(model, SEED)
    rng = np.random.default_rng(SEED)
    np.savez(
        output,
        devices=jax.device_count(),
        samples=len(dataset.labels),
        **trained(model, variables, dataset),
        **measured(model, variables, dataset, rng),
        **clustered(model, variables, dataset, rng),
        **rows_read(model, variables, dataset, rng),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
