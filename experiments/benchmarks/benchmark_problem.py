"""What both implementations of the benchmark are given. JAX is not imported here: the baseline runs without it."""

import dataclasses
import os
import pathlib
import time

import numpy as np

from i2x_jax import Run
from i2x_jax.config import Config
from i2x_jax.data.dataset import hold_out
from i2x_jax.explanation.mapping import NUM_FOLDS, stratified_folds


@dataclasses.dataclass(frozen=True)
class Problem:
    """A finished run, and the images on which its explain stage is done again.

    Attributes:
      config: of the run.
      workdir: of the run.
      images: uint8 `[N, H, W, C]`.
      labels: int32 `[N]`.
      class_names: M names.
      folds: int `[N]`, of the mapping's cross-validation.
      steps: of the analysed checkpoints.
      weights: their weights under torchvision's names, one .safetensors file each.
      threads: how many each implementation may use.
    """

    config: Config
    workdir: pathlib.Path
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    folds: np.ndarray
    steps: tuple[int, ...]
    weights: tuple[pathlib.Path, ...]
    threads: int

    @property
    def num_classes(self) -> int:
        """M."""
        return len(self.class_names)

    def resized(self, images: int, prototypes: int, checkpoints: int) -> "Problem":
        """The same network with more or fewer images and checkpoints, repeated where there are not enough."""
        rows, times = np.arange(images) % len(self.labels), np.arange(checkpoints) % len(self.steps)
        labels = self.labels[rows]
        explain = dataclasses.replace(self.config.explain, num_prototypes=prototypes)
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, explain=explain),
            images=self.images[rows],
            labels=labels,
            folds=stratified_folds(labels, NUM_FOLDS, self.config.seed),
            steps=tuple(self.steps[t] for t in times),
            weights=tuple(self.weights[t] for t in times),
        )


class Stopwatch:
    """Seconds of the parts of something that is done one after the other."""

    def __init__(self):
        self.laps, self._last = {}, time.perf_counter()

    def lap(self, name: str) -> None:
        """Names the part that has just ended."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def problem_of(workdir: str, data_dir: str | None, num_images: int, weights: str) -> Problem:
    """The problem that a finished run poses.

    Args:
      workdir: of the run.
      data_dir: where prepared data sets are.
      num_images: at most so many training images, stratified by class.
      weights: the folder of the weights, one file a checkpoint, named after its step.

    Raises:
      InputError: the run or its data cannot be read.
    """
    run = Run(workdir, data_dir)
    dataset = run.dataset
    if num_images < len(dataset.labels):
        dataset = hold_out(dataset, num_images / len(dataset.labels), run.config.seed)[1]
    steps = tuple(int(step) for step in run.steps)
    return Problem(
        config=run.config,
        workdir=run.path,
        images=dataset.images,
        labels=dataset.labels,
        class_names=dataset.class_names,
        folds=stratified_folds(dataset.labels, NUM_FOLDS, run.config.seed),
        steps=steps,
        weights=tuple(pathlib.Path(weights) / f"{step}.safetensors" for step in steps),
        threads=len(os.sched_getaffinity(0)),
    )
