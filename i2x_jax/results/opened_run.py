"""`Run`: a run directory opened for reading, finished or not (DESIGN section 4).

Nothing here needs JAX until a model or its weights are asked for, so that looking at a finished run is quick.
"""

import functools
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from i2x_jax.config import OWN, Config, InputError
from i2x_jax.data.dataset import Dataset, Splits, load_splits
from i2x_jax.explanation.types import Explanation
from i2x_jax.explanation.types import from_json as explanation_from_json
from i2x_jax.results.arrays import ARRAYS, read_array, read_arrays
from i2x_jax.results.files import (
    CHECKPOINTS,
    CONFIG,
    EXPLANATION,
    METRICS,
    REFINEMENT,
    file_state,
    read,
    read_config,
    read_json,
    read_metrics,
)

if TYPE_CHECKING:
    import pandas

    from i2x_jax.results import story


class Run:
    """Reading side of a run directory; everything is opened when asked for, large arrays as memory maps.

    Attributes:
      path: the directory.
      config: how the run was made.
    """

    def __init__(self, path: str | os.PathLike, data_dir: str | None = None):
        self.path = pathlib.Path(path).absolute()
        if not (self.path / CONFIG).exists():
            raise InputError(f"{self.path} is not a run directory: no {CONFIG} in it; allowed: a --workdir of run.py")
        self.config = read_config(self.path)
        self._data_dir = data_dir
        self._opened = {}

    def array(self, name: str) -> np.ndarray:
        """A .npy file by its name without ending: steps, labels, assignments, intensity, confidence, groups."""
        path, sizes = self._known(f"{name}.npy"), self._sizes(name)
        # Every value is checked, once as long as the file is the same.
        key = file_state(path), sizes
        if self._opened.get(name, (None,))[0] != key:
            self._opened[name] = key, read_array(path, sizes)
        return self._opened[name][1]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """A .npz file: prototypes, contributions, validation, test, mapping, curated."""
        return read_arrays(self._known(f"{name}.npz"), self._sizes(name))

    def _known(self, name):
        if name not in ARRAYS:
            raise InputError(f"{name} is no array of a run; allowed: {', '.join(ARRAYS)}; check the spelling")
        return self.path / name

    def _sizes(self, name):
        """The symbols of `arrays.Spec` that are known without opening the array of that name."""
        k = self.config.explain.num_prototypes
        sizes = {"K": k, "A": k + 1, "D": self.config.explain.pca_dims}
        # Data and model are looked at where they are at hand: opening an array must not read a data set.
        if "splits" in vars(self):
            train, validation, test = self.splits
            sizes |= {"M": len(train.class_names), "N": len(train.labels)}
            sizes |= {"V": len(validation.labels), "E": len(test.labels)}
        elif name not in ("steps", "labels"):
            sizes["N"] = len(self.array("labels"))
        if "model" in vars(self):
            sizes |= dict(zip("hwd", self.model.feature_shape, strict=True))
        if name not in ("steps", "labels"):
            sizes |= {"T": len(self.steps), "I": len(self.steps) - 1, "J": len(self.steps) - 2}
        return sizes

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Steps of the analysed checkpoints, int32 `[T]`."""
        return np.array(self.array("steps"))

    @functools.cached_property
    def splits(self) -> Splits:
        """Train (as analysed), validation and test."""
        self._refuse_own()
        return dataset_of(self.config, self._data_dir)

    @property
    def dataset(self) -> Dataset:
        """The N training samples, in the order of every array of the run."""
        return self.splits.train

    @functools.cached_property
    def explanation(self) -> Explanation:
        """The structured explanation."""
        path = self.path / EXPLANATION
        return read(path, lambda path: explanation_from_json(path.read_text()))

    @functools.cached_property
    def refinement(self) -> dict:
        """The refinement table, as in refinement.json."""
        if self.config.model.name == OWN:
            raise InputError(
                f"{self.path} explains a model of your own, which is not refined; allowed: a --workdir of run.py; "
                "look at .explanation instead"
            )
        return read_json(self.path / REFINEMENT, "refinement")

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl."""
        return read_metrics(self.path / METRICS)

    @functools.cached_property
    def model(self):
        """The `models.Model`."""
        self._refuse_own()
        return model_of(self.config, self.dataset)

    def _refuse_own(self):
        """What was handed to `i2x_jax.explain` is not in its run directory."""
        if self.config.model.name == OWN:
            raise InputError(
                f"{self.path} explains a model and images of your own, which it does not hold; allowed: everything "
                f"that needs neither; for the rest call i2x_jax.explain again, with what it was called with and "
                f"workdir={str(self.path)!r}: it returns at once"
            )

    @functools.cached_property
    def abstract_variables(self) -> dict:
        """A tree like the weights, of shapes and dtypes."""
        import jax

        return jax.eval_shape(self.model.init, jax.random.key(0))

    def variables(self, step: int) -> dict:
        """The weights at an analysed step; those of a run by run.py have recomputed BatchNorm statistics."""
        from i2x_jax.training.checkpoints import Checkpoints

        with Checkpoints(self.path / CHECKPOINTS, read_only=True) as checkpoints:
            return checkpoints.restore_variables(step, self.abstract_variables)

    def crops(self, prototype: int, n: int = 16) -> "story.Crops":
        """The places where a prototype is strongest, cut out of their images; needs the model and the data.

        Args:
          prototype: its id, 0 to K-1.
          n: how many at most; fewer where fewer images have the prototype.

        Returns:
          `images` uint8 `[n, side, side, C]`, `rows` int64 `[n]`, `locations` int64 `[n, 2]` and `intensity` float32
          `[n]`, by falling intensity at the last checkpoint (`story.Crops`).

        Raises:
          InputError: unknown prototype, or n below 1.
        """
        from i2x_jax.results import story

        return story.crops(self, prototype, n)

    def story(self, image: int) -> "story.Story":
        """How the network came to see one training image as it does (`story.Story`).

        Raises:
          InputError: `image` is no row of the run's arrays.
        """
        from i2x_jax.results import story

        return story.story(self, image)

    def to_frame(self, table: str) -> "pandas.DataFrame":
        """A table of the run as a pandas data frame, one row per record.

        Args:
          table: one of `tables.TABLES`: intervals, prototypes, support, pairs, uncertain, metrics, refinement.

        Raises:
          InputError: no such table, or pandas is not installed.
        """
        from i2x_jax.results import tables

        return tables.to_frame(self, table)


def dataset_of(config: Config, data_dir: str | None) -> Splits:
    """The splits a config asks for."""
    data = config.data
    return load_splits(data.name, data.validation, data.max_train, data.image_size, config.seed, data_dir)


def model_of(config: Config, dataset: Dataset):
    """The `models.Model` a config asks for."""
    from i2x_jax import models

    return models.create(
        config.model.name,
        num_classes=len(dataset.class_names),
        image_shape=dataset.images.shape[1:],
        width=config.model.width,
        stem=config.model.stem,
        tap=config.model.tap,
        dtype=config.model.dtype,
        allow_1x1=config.model.allow_1x1,
    )
