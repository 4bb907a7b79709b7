"""The stages of the benchmark by this library: its own functions, as `run.py` calls them."""

import pathlib
import shutil
import tempfile

import jax
import numpy as np
from safetensors.numpy import save_file

from experiments.benchmarks.benchmark_problem import Problem, Stopwatch
from i2x_jax import Run
from i2x_jax.data.dataset import Dataset, Splits
from i2x_jax.devices.mesh import divisible, fetch, shard
from i2x_jax.evidence import measuring as evidence
from i2x_jax.evidence import prototypes
from i2x_jax.explanation import grouping, mapping
from i2x_jax.explanation.analysis import difference, fit_groups
from i2x_jax.models import torch_weights
from i2x_jax.pipeline import explain as stage_explain
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.prototypes import blocks, cluster, feature_rows, find_prototypes, nearest, reduce_features
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
        rows = feature_rows(self.model, self.variables, self.dataset, self.settings.batch_size)
        return {"features": np.concatenate([fetch(part)[:count] for part, _, count in rows])}

    def maps(self, assignments: np.ndarray) -> dict:
        """Saliency of the first batch, to compare."""
        rows = slice(0, self.settings.batch_size)
        images, labels = self.dataset.images[rows], self.dataset.labels[rows]
        found = evidence.batch_evidence(
            self.model,
            stage_explain.measuring_of(self.settings)._replace(contributions=False),
            self.variables,
            images,
            labels,
            np.ones(len(labels), bool),
            assignments[rows].reshape(-1, *self.model.feature_shape[:2]),
        )
        return {"maps": fetch(found.maps)}

    def saliency_intensity(self, assignments: np.ndarray, with_contributions: bool = False) -> dict:
        """Intensity `[N, K]` and confidence `[N, M]` at the checkpoint that is loaded."""
        intensity = np.empty((len(self.dataset.labels), self.settings.num_prototypes), np.float32)
        confidence = np.empty((len(self.dataset.labels), self.problem.num_classes), np.float32)
        self._measure(assignments, intensity, confidence, with_contributions)
        return {"intensity": intensity, "confidence": confidence}

    def _measure(self, assignments, intensity, confidence, with_contributions=False):
        evidence.measure_checkpoint(
            self.model,
            self.variables,
            self.dataset,
            assignments.reshape(-1, *self.model.feature_shape[:2]),
            stage_explain.measuring_of(self.settings)._replace(contributions=with_contributions),
            intensity,
            confidence,
        )

    def pca(self, features: np.ndarray) -> dict:
        """PCA, fitted and applied, in batches of as many rows as in a run."""
        h, w, _ = self.model.feature_shape
        size = divisible(min(self.settings.batch_size * h * w, len(features)))

        def rows_of():
            for start in range(0, len(features), size):
                part = features[start : start + size]
                count = len(part)
                part = np.pad(part, ((0, size - count), (0, 0))) if count < size else part
                yield *shard((part, (np.arange(size) < count).astype(np.float32))), count

        found, points = reduce_features(rows_of, len(features), self.settings.pca_dims)
        return {"points": points, "components": found.components, "mean": found.mean}

    def kmeans(self, points: np.ndarray, start: np.ndarray, iterations: int) -> dict:
        """Lloyd's iterations from a given start."""
        found = prototypes.lloyd(*zip(*blocks(points), strict=True), start, iterations, 0.0)
        return {"centroids": found.centroids, "inertia": found.inertia, "iterations": found.iterations}

    def kmeans_fit(self, points: np.ndarray, max_locations: int = 0) -> dict:
        """K-means from its own start until it converges, on all rows or on some; all are assigned."""
        found = self._cluster(points, max_locations)
        return {"centroids": found.centroids, "inertia": found.inertia, "iterations": found.iterations}

    def _cluster(self, points, max_locations):
        settings = self.settings
        return cluster(points, settings.num_prototypes, self.problem.config.seed, settings.restarts, max_locations)

    def assign(self, points: np.ndarray, centroids: np.ndarray) -> dict:
        """The nearest centroid of every point."""
        return {"ids": nearest(blocks(points), centroids)[: len(points)]}

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
            subsets = [classes, *((label,) for label in classes)]
            draws = mapping.Draws(self.problem.config.seed, permutations, resamples)
            fits = mapping.map_samples(dP, dY, total, labels, len(classes), subsets, draws)
            by_groups = fit_groups(dP, dY, groups[t], labels, len(classes), self.settings)
            fit = fits[0]
            found.append((by_groups[0][0], fit.beta, fit.ridge_lambda, fit.r2, [each.r2 for each in fits[1:]]))
        names = ("beta_groups", "beta", "ridge_lambda", "r2", "r2_by_class")
        return {name: np.stack(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}

    def explain(self) -> dict:
        """What the baseline computes too, from images and checkpoints."""
        watch, problem, (h, w, _) = Stopwatch(), self.problem, self.model.feature_shape
        self.load(-1)
        reduced, points = reduce_features(
            lambda: feature_rows(self.model, self.variables, self.dataset, self.settings.batch_size),
            len(problem.labels) * h * w,
            self.settings.pca_dims,
        )
        watch.lap("features and pca")
        found = self._cluster(points, self.settings.max_locations)
        assignments = found.assignments.reshape(len(problem.labels), -1)
        watch.lap("kmeans and assign")
        intensity = np.empty((len(problem.steps), len(problem.labels), self.settings.num_prototypes), np.float32)
        confidence = np.empty((*intensity.shape[:2], problem.num_classes), np.float32)
        for t in range(len(problem.steps)):
            self.load(t)
            self._measure(assignments, intensity[t], confidence[t])
        watch.lap("saliency_intensity")
        groups = self.grouping(confidence)["groups"]
        watch.lap("grouping")
        mapped = self.mapping(intensity, confidence, groups)
        watch.lap("mapping")
        return {
            "assignments": assignments,
            "centroids": found.centroids @ reduced.components,
            "intensity": intensity,
            "confidence": confidence,
            "groups": groups,
            "r2": mapped["r2"],
            "iterations": found.iterations,
            "parts": watch.laps,
        }

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
                stage_explain.measure_evidence,
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
