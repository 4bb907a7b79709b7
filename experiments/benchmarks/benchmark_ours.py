"""The stages of the benchmark by this library: its own functions, as `run.py` calls them."""

import pathlib
import shutil
import tempfile

import jax
import numpy as np
from safetensors.numpy import save_file

from experiments.benchmarks.benchmark_problem import Problem, Stopwatch
from i2x_jax import Run
from i2x_jax.data.dataset import Dataset, Splits, batches
from i2x_jax.devices.mesh import ahead, divisible, fetch, replicate, shard
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.evidence.sampling import sample_locations
from i2x_jax.explanation import grouping, mapping
from i2x_jax.explanation.analysis import difference, fit_groups
from i2x_jax.models import torch_weights
from i2x_jax.pipeline import explain as stage_explain
from i2x_jax.pipeline import measure as stage_measure
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.prototypes import (
    blocks,
    cluster,
    find_prototypes,
    locations_wanted,
    reduce_features,
    sample_of,
    sampled_features,
)
from i2x_jax.results.files import CHECKPOINTS, CONFIG
from i2x_jax.training import loop as training


class Implementation:
    """The stages, each with the outputs of those before it as arguments; NumPy arrays in and out."""

    def __init__(self, problem: Problem, batch_size: int = 0):
        # The config sets it.
        del batch_size
        self.run = Run(problem.workdir)
        self.use(problem)
        self.model = self.run.model
        self.load(-1)

    def use(self, problem: Problem) -> None:
        """Goes on with other images, prototypes or checkpoints of the same network."""
        self.problem, self.settings = problem, problem.config.explain
        self.dataset = Dataset(problem.images, problem.labels, problem.class_names)
        # The run's own reader of checkpoints, without reading its data again.
        self.run.splits = Splits(self.dataset, self.dataset, self.dataset)

    def facts(self) -> dict:
        """What the report says of this side."""
        devices = [str(device) for device in jax.devices()]
        return {
            "jax": jax.__version__,
            "devices": devices,
            "threads": self.problem.threads,
            "batch_size": self.settings.batch_size,
        }

    def cool(self) -> None:
        """Forgets compiled programs."""
        jax.clear_caches()

    def load(self, t: int) -> None:
        """The weights of analysed checkpoint t."""
        self.variables = self.run.variables(self.problem.steps[t])

    def labels(self) -> dict:
        """The classes of the images, in their order."""
        return {"labels": self.problem.labels}

    def export(self) -> dict:
        """Writes every analysed checkpoint under torchvision's names."""
        for step, path in zip(self.problem.steps, self.problem.weights, strict=True):
            save_file(torch_weights.to_torch(self.problem.config.model.name, self.run.variables(step)), path)
        return {}

    def forward(self) -> dict:
        """Logits of all images at the last checkpoint."""
        return {"logits": training.predict(self.model, self.variables, self.dataset, self.settings.batch_size)}

    def features(self) -> dict:
        """Feature vectors of all locations, for the stages behind them."""
        return {"features": self._features(max_locations=-1)}

    def _features(self, max_locations):
        wanted = locations_wanted(max_locations, self.settings.num_prototypes)
        sample = sample_of(self.dataset, self.model, wanted, self.problem.config.seed)
        return sampled_features(self.model, self.variables, self.dataset, self.settings.batch_size, sample)[0]

    def _taken(self, batch, assignments):
        """What the checkpoint that is loaded takes from a batch; without a ledger the blank image does not matter."""
        images, labels, places = shard((batch.images, batch.labels, assignments))
        tapped = measuring.batch_tapped(self.model, self.variables, images)
        blank = np.zeros((1, *self.model.feature_shape), np.float32)
        return measuring.take(
            self.model,
            self._measuring(ledger=False),
            self.variables,
            tapped,
            labels,
            places.reshape(-1, *self.model.feature_shape[:2]),
            blank,
        )

    def _measuring(self, ledger):
        settings = self.settings
        return measuring.Measuring(settings.num_prototypes, settings.cam, settings.target, ledger=ledger)

    def maps(self, assignments: np.ndarray) -> dict:
        """Saliency of the first batch, to compare."""
        size = min(self.settings.batch_size, len(self.dataset.labels))
        batch = next(batches(self.dataset, size))
        return {"maps": fetch(self._taken(batch, assignments[:size]).maps)}

    def saliency_intensity(self, assignments: np.ndarray) -> dict:
        """Intensity `[N, K]` and confidence `[N, M]` at the checkpoint that is loaded."""
        count, size = len(self.dataset.labels), divisible(self.settings.batch_size)
        intensity = np.empty((count, self.settings.num_prototypes), np.float32)
        confidence = np.empty((count, self.problem.num_classes), np.float32)
        places = np.pad(assignments.reshape(count, -1), ((0, -count % size), (0, 0)))
        found = (
            (batch, self._taken(batch, places[batch.start : batch.start + size]))
            for batch in batches(self.dataset, size)
        )
        for batch, taken in ahead(found):
            rows = slice(batch.start, batch.start + int(batch.mask.sum()))
            stage_measure.write_rows(intensity, rows, taken.intensity)
            stage_measure.write_rows(confidence, rows, taken.confidence)
        return {"intensity": intensity, "confidence": confidence}

    def pca(self, features: np.ndarray) -> dict:
        """PCA, fitted and applied, in blocks as in a run."""
        found, points = reduce_features(features, self.settings.pca_dims)
        return {"points": points, "components": found.components, "mean": found.mean}

    def kmeans(self, points: np.ndarray, start: np.ndarray, iterations: int) -> dict:
        """Lloyd's iterations from a given start."""
        found = prototypes.lloyd(*zip(*blocks(points), strict=True), start, iterations, 0.0)
        return {"centroids": found.centroids, "inertia": found.inertia, "iterations": found.iterations}

    def kmeans_fit(self, points: np.ndarray, max_locations: int = -1) -> dict:
        """K-means from its own start until it converges, on all rows or on some; all are assigned."""
        config, settings = self.problem.config, self.settings
        wanted = locations_wanted(max_locations, settings.num_prototypes)
        fitted = points if wanted is None else points[sample_locations(len(points), wanted, config.seed)]
        found = cluster(fitted, settings.num_prototypes, config.seed, settings.restarts)
        self.assign(points, found.centroids)
        return {"centroids": found.centroids, "inertia": found.inertia, "iterations": found.iterations}

    def assign(self, points: np.ndarray, centroids: np.ndarray) -> dict:
        """The nearest centroid of every point."""
        found = (prototypes.assign(part, centroids) for part, _ in blocks(points))
        return {"ids": np.concatenate([fetch(ids) for ids in ahead(found)])[: len(points)]}

    def grouping(self, confidence: np.ndarray) -> dict:
        """Groups of every interval `[T-1, N]`."""
        changes = (difference(confidence, t) for t in range(len(confidence) - 1))
        return {"groups": np.stack([self.grouping_interval(dY)["groups"] for dY in changes])}

    def grouping_interval(self, dY: np.ndarray) -> dict:
        """Groups of one interval."""
        settings = self.settings
        ids, _ = grouping.group_interval(
            dY,
            self.problem.labels,
            self.problem.num_classes,
            settings.group_by,
            settings.min_cluster_size,
            settings.min_samples,
        )
        return {"groups": ids}

    def mapping(
        self,
        intensity: np.ndarray,
        confidence: np.ndarray,
        groups: np.ndarray,
        permutations: int = 0,
        resamples: int = 0,
    ) -> dict:
        """Ridge on group means and on samples, over all classes and within each, and held-out R^2."""
        labels, classes = self.problem.labels, tuple(range(self.problem.num_classes))
        found = []
        for t in range(len(groups)):
            dP, dY = difference(intensity, t), difference(confidence, t)
            # A run weighs the prototypes by area here; the work is the same.
            total = dP.sum(1)
            subsets = [mapping.Subset(each) for each in (classes, *((label,) for label in classes))]
            draws = mapping.Draws(self.problem.config.seed, permutations, resamples)
            changes = mapping.Changes(dP, dY, labels, len(classes))
            fits = mapping.map_samples(changes, total, subsets, draws)
            by_groups = fit_groups(changes, groups[t], self.settings)
            fit = fits[0]
            found.append((by_groups[0][0], fit.beta, fit.ridge_lambda, fit.r2, [each.r2 for each in fits[1:]]))
        names = ("beta_groups", "beta", "ridge_lambda", "r2", "r2_by_class")
        return {name: np.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}

    def explain(self, max_locations: int = -1, ledger: bool = False) -> dict:
        """From images and checkpoints; by default what the baseline computes too, all locations fitted on."""
        watch, problem, settings = Stopwatch(), self.problem, self.settings
        self.load(-1)
        reduced, points = reduce_features(self._features(max_locations), settings.pca_dims)
        watch.lap("features and pca")
        found = cluster(points, settings.num_prototypes, problem.config.seed, settings.restarts)
        watch.lap("kmeans")
        rows = self._measure(reduced, found.centroids, ledger)
        watch.lap("measuring, assignment included")
        groups = self.grouping(rows.confidence)["groups"]
        watch.lap("grouping")
        mapped = self.mapping(rows.intensity, rows.confidence, groups)
        watch.lap("mapping")
        return {
            "assignments": rows.assignments,
            "centroids": found.centroids @ reduced.components,
            "intensity": rows.intensity,
            "confidence": rows.confidence,
            "groups": groups,
            "r2": mapped["r2"],
            "iterations": found.iterations,
            "parts": watch.laps,
        }

    def _measure(self, reduced, centroids, ledger):
        """The pass of the step `evidence` over the training images, in one block."""
        problem, settings, (h, w, _) = self.problem, self.settings, self.model.feature_shape
        steps, count = len(problem.steps), len(problem.labels)
        variables = [self.run.variables(step) for step in problem.steps]
        blank = replicate(measuring.blank_image(np.zeros(1), problem.images))
        blanks = [measuring.batch_tapped(self.model, held, blank) for held in variables]
        checkpoints = stage_measure.Checkpoints(
            self.model,
            self._measuring(ledger),
            variables.__getitem__,
            blanks,
            *replicate((reduced, centroids, np.tile(np.arange(problem.num_classes), (problem.num_classes, 1)))),
        )
        k = settings.num_prototypes
        rows = stage_measure.Rows(
            np.empty((count, h * w), np.int16),
            np.empty((steps, count, k), np.float32),
            np.empty((steps, count, problem.num_classes), np.float32),
            np.empty((steps - 1, count, k + 1), np.float32) if ledger else None,
            None,
        )
        stage_measure.measure_block(checkpoints, self.dataset, rows, problem.steps, 0, settings.batch_size)
        return rows

    def explain_complete(self) -> dict:
        """The stage as `run.py` does it, with all that the baseline leaves out, into a folder that is thrown away."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name in (CONFIG, "steps.npy"):
                shutil.copy(self.run.path / name, folder)
            (folder / CHECKPOINTS).symlink_to(self.run.path / CHECKPOINTS)
            directory, work = RunDirectory(folder), Run(folder)
            work.splits, work.model = self.complete_splits, self.model
            watch = Stopwatch()
            for stage in (
                find_prototypes,
                stage_measure.measure_evidence,
                stage_explain.map_changes,
                stage_explain.draw_contact_sheet,
            ):
                stage(directory, work)
                watch.lap(stage.__name__)
        return {"parts": watch.laps}

    def read_splits(self, data_dir: str | None) -> dict:
        """Reads validation and test samples too, which only `explain_complete` needs."""
        self.complete_splits = Run(self.problem.workdir, data_dir).splits._replace(train=self.dataset)
        return {}

    def start_training(self, augment: bool) -> dict:
        """The weights of step 0 and a new optimizer."""
        settings = self.problem.config.train
        self.augment = self.problem.config.data.augment if augment else "none"
        # With one step in all, the first has exactly the rate of the config: what the baseline uses throughout.
        self.optimizer = training.make_optimizer(
            settings.optimizer,
            settings.learning_rate,
            settings.weight_decay,
            self.problem.steps[-1] if augment else 1,
            settings.warmup,
        )
        self.load(0)
        self.state = training.init_state(self.variables, self.optimizer)
        self.step = 0
        return {}

    def train_step(self, count: int) -> dict:
        """Some steps of training; returns their mean loss."""
        config = self.problem.config
        self.state, totals = training.run_steps(
            training.Recipe(self.model, self.optimizer, self.augment, config.train.batch_size, config.seed),
            self.state,
            training.zero_totals(),
            self.dataset,
            self.step,
            self.step + count,
        )
        self.step += count
        return {"loss": float(fetch(totals.loss)) / (count * config.train.batch_size)}
