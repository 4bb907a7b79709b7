"""Explaining a network of one's own, and training one on images of one's own, from Python.

The steps of run.py do the work and write the same run directory; what is here turns a user's network, checkpoints and
images into what those steps take, and refuses what they could not use before anything is written.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from i2x_jax import config as config_lib
from i2x_jax.config import OWN, Config, DataConfig, InputError, ModelConfig, TrainConfig, from_config_dict
from i2x_jax.data import planted
from i2x_jax.data.dataset import (
    TEST_SEED,
    Dataset,
    Splits,
    check_classes,
    checked,
    hold_out,
    steps_per_pass,
)
from i2x_jax.devices.mesh import barrier, fetch, is_main, replicate
from i2x_jax.evidence.geometry import by_cells, measured_places
from i2x_jax.models.model import Model
from i2x_jax.models.own import linear_head_of, nnx_functions, pooled
from i2x_jax.models.places import Places
from i2x_jax.pipeline import needs
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline.adopt import Checkpoint, adopt, survey
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.promises import check_promises
from i2x_jax.pipeline.trust import check_trustable
from i2x_jax.results.files import CHECKPOINTS, steps_of
from i2x_jax.results.opened_run import Run
from i2x_jax.training.checkpoints import foreign_items, restore_foreign

# Of a closed form against `head`, by the largest logit and the number type: another order of sums, and half precision.
SAME_LOGITS, SAME_LOGITS_IN_HALF = 1e-4, 3e-2
IMAGES_COMPARED = 32
# Settings of the data that concern every network, those trained elsewhere too.
ANY_NETWORK = ("validation", "plant", "plant_strength", "plant_size", "plant_place", "plant_seed")
NAMED = ("audit", "unbiased")  # data sets that only the program looks up
IMAGES_PROBED = 3  # whose gradients tell what locations see


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A classifier of one's own, cut in two; pure functions that JAX can trace, of NNX, Linen, Equinox or plain JAX.

    Both see the network as it is used, not trained: dropout off, BatchNorm with its running averages. Whether the head
    is a global average pool and a linear layer, behind which all is exact, is found out on images.

    Attributes:
      features: `(variables, images) -> [B, h, w, d]`; images are those of the data set: scaling is its part.
      head: `(variables, features) -> logits [B, M]`, each sample for itself.
      linear_head: `variables -> (weights [d, M], bias [M])` of such a head, held against `head`; it need not be given.
      receptive_field: side in pixels of what one location of the map depends on; crops are cut by it, up to half the
        image. 0 to have it measured, as its centre always is, by the gradient of `features`.
    """

    features: Callable[[Any, jax.Array], jax.Array]
    head: Callable[[Any, jax.Array], jax.Array]
    linear_head: Callable[[Any], tuple[jax.Array, jax.Array]] | None = None
    receptive_field: int = 0

    @classmethod
    def from_nnx(cls, net: Any, layer: str, images: np.ndarray) -> "OwnModel":
        """A Flax NNX network cut behind one of its layers, by name.

        Variables are then `nnx.state(net, nnx.Not(nnx.RngState))`: what is drawn at random is left out.

        Args:
          net: called with images it returns logits; it is left as it is.
          layer: such as 'conv2' or 'blocks.3'; all that the logits depend on must pass through it, once.
          images: a few, on which that is tried.

        Raises:
          InputError: no such layer, or one that is passed by.
        """
        return cls(*nnx_functions(net, layer, np.asarray(images)))


@dataclasses.dataclass(frozen=True)
class OrbaxCheckpoints:
    """A folder of checkpoints that Orbax wrote, one folder a step; they are read one at a time.

    Attributes:
      directory: with a folder for each step, named by it, perhaps after a prefix (100, 000100, step_100).
      item: which item of each, where there are several; '' for the only one, or the one called `variables`.
      like: a tree of the structure, shapes and dtypes that `features` and `head` take; None for nested dicts and
        lists, as they were stored.
    """

    directory: str | os.PathLike
    item: str = ""
    like: Any = None


class HeldOut(TypedDict, total=False):
    """Images that a network was not trained on, by what they serve; None is as if left out.

    Attributes:
      validation: they serve every choice: when classes were told apart, and which are confused.
      test: for the final figures.
      audit: images in which a suspected link of something to a class is broken, to choose by; some 200 will do.
      unbiased: images without that link, for the final figures.
    """

    validation: Dataset | None
    test: Dataset | None
    audit: Dataset | None
    unbiased: Dataset | None


def explain(
    model: OwnModel | Model,
    checkpoints: Iterable[Any] | str | os.PathLike | OrbaxCheckpoints,
    dataset: Dataset,
    config: Config | Mapping[str, Any] | None = None,
    workdir: str | os.PathLike | None = None,
    *,
    trust: bool = False,
    **held_out: Unpack[HeldOut],
) -> Run:
    """Explains how a network learned to decide, from its checkpoints.

    The steps are those of run.py but the refinement: how this network is trained is not known here.

    Variables are used as they are. In particular BatchNorm statistics are not computed anew, as they are for the
    networks trained here (DESIGN 2.1): running averages of an early step describe the steps before it.

    Args:
      model: the network; one of `i2x_jax.models.create` will do as well.
      checkpoints: at least two, by rising step: variables (whose steps are then 0, 1, ...), pairs of step and
        variables, or a folder that Orbax wrote. Variables are any tree of arrays.
      dataset: the images that are analysed, most often those that the network was trained on.
      config: settings, all or some, as an `ml_collections.ConfigDict`, a nested dict or a `Config`. Used are the group
        `explain` (without an own `pca_dims`: 32, or d where that is smaller), `seed`, `data.validation`, `data.plant`
        with what belongs to it, `model.allow_1x1`, `refine.pair` and `refine.max_left_out`. A planted cue is in all
        images that the network is shown here: it should have been trained on such images (`data.planted.plant`).
      workdir: the run directory, new or of the same call: what is finished is not done again, and a call that was
        stopped goes on. None for a temporary one, which is deleted when the `Run` is no longer held.
      trust: whether it is measured how far the explanation can be trusted (DESIGN 2.14); of a finished run too.
      **held_out: `validation`, `test`, `audit` and `unbiased` (see `HeldOut`), which the network was not trained on.
        Without a validation set the share `data.validation` of `dataset` is held out, stratified by class: if the
        network has seen those, it will seem to tell classes apart sooner than it did. Without a test set the same
        share, the same images whatever the seed. There need not be audit and unbiased images; with `data.plant` they
        are made.

    Returns:
      The run, with report.html in its directory: `explanation`, `crops`, `story`, `to_frame`, `array`. Rows of its
      arrays are those of `run.dataset`: `dataset` less what was held out. `run.dataset.rows` holds their indices in
      `dataset`, as `run.splits.validation.rows` and `run.splits.test.rows` do of what was held out, and
      `run.story(index, split="given")` finds an image by it.

    Raises:
      InputError: something that was given cannot be used; one line says what, and how to mend it. A directory that did
        not exist is not left behind.
    """
    _check_switches(trust=trust)
    settings = _settings(config)
    splits = _splits(dataset, held_out, settings, "explain")
    if isinstance(model, Model) or settings.data.plant:
        _check_levels(splits.train, "a network of this project" if isinstance(model, Model) else "data.plant")
    given = _checkpoints(checkpoints)
    like, digest = survey(given)
    own = _cut(model, like, splits.train, settings.model.allow_1x1)
    settings = _fitting(settings, config, own)
    pipeline.check_explainable(settings, splits, own)
    if trust:
        check_trustable(own)
    if isinstance(model, OwnModel):
        check_promises(own, given[-1].load(), splits.train.images)
    if isinstance(model, OwnModel):
        own = _with_linear_head(own, given, splits.train, _tolerance(model, like, splits.train))
        own = _placed(own, given[-1].load(), splits.train, model.receptive_field)
    with _folder(workdir, lambda path: RunDirectory(path).complete("train")) as (path, temporary):
        run = _adopted(path, (settings, splits, own, like), given, digest, trust)
    if temporary:
        weakref.finalize(run, shutil.rmtree, path, ignore_errors=True)
    return run


def _adopted(path, explained, given, digest, trust):
    """The run of checkpoints that were handed over, made as far as it is not there."""
    settings, splits, own, like = explained
    stages = ("explain", "report", *(["trust"] if trust else []))
    makers = {step: pipeline.MAKERS[step] for step in steps_of(stages)}
    directory = RunDirectory(path, is_main(), barrier)
    scale = needs.scale_of(settings, splits, own, [each.step for each in given], like)
    wanted = needs.needs_of(settings, splits, own, scale)
    needs.check_fits(wanted, ("train", *makers), directory.path)
    with directory.locked():
        directory.check_config(settings)
        directory.barrier("directory checked")
        pipeline.write_header(directory, settings, splits, {"checkpoints_sha256": digest})
        directory.barrier("header written")
        run = Run(path)
        run.splits, run.model, run.abstract_variables = splits, own, like
        pipeline.make_steps(directory, run, {"train": functools.partial(adopt, given=given), **makers}, logging.info)
    return run


def train(
    dataset: Dataset,
    config: Config | Mapping[str, Any] | None = None,
    workdir: str | os.PathLike[str] | None = None,
    *,
    refine: bool = False,
    trust: bool = False,
    **held_out: Unpack[HeldOut],
) -> Run:
    """Trains a network of this project on images of one's own, and explains how it learned to decide.

    The steps are those of run.py, with the same checks. `Run` opens the directory afterwards; for what needs the images
    (`crops`, most of `story`) call this again, with what it was called with: it returns at once.

    Args:
      dataset: the images to train on, and that are analysed.
      config: settings, all or some, as in `explain`: which network is `model`, how it is trained is `train` and
        `data.augment`. `data.name` is 'own' whatever it says, and images are taken as they are: `data.image_size`
        and the others that prepare them must have their defaults.
      workdir: as in `explain`; a training that was stopped goes on from its last checkpoint.
      **held_out: as in `explain`.
      refine: fine-tune as well, with the controls (DESIGN 2.9). A run that was made without it is completed.
      trust: as in `explain`.

    Returns:
      The run, with report.html in its directory; rows are as in `explain`.

    Raises:
      InputError: something that was given cannot be used; one line says what, and how to mend it.
    """
    settings = config if isinstance(config, Config) else from_config_dict({} if config is None else config)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, name=OWN))
    for key in NAMED:
        if name := getattr(settings.data, key):
            raise InputError(
                f"config key data.{key} is {name!r}; allowed: '' for images of your own; hand over {key}=, a Dataset"
            )
    for key in ("image_size", "preprocess", "resize", "crop", "channels", "skip_broken"):
        if value := getattr(settings.data, key):
            raise InputError(
                f"config key data.{key} is {value!r}; allowed: {getattr(DataConfig, key)!r} for images of your own; "
                "prepare them before you hand them over"
            )
    if settings.model.name == OWN:
        raise InputError(
            f"config key model.name is {OWN!r}; allowed: a network of this project; for one of your own call "
            "i2x_jax.explain"
        )
    _check_switches(refine=refine, trust=trust)
    splits = _splits(dataset, held_out, settings, "train")
    _check_levels(splits.train, "a network of this project")
    stages = ("train", "explain", "report", *(["refine"] if refine else []), *(["trust"] if trust else []))
    steps = steps_of(stages)
    with _folder(workdir, lambda path: (path / CHECKPOINTS).exists()) as (path, temporary):
        directory = RunDirectory(path, is_main(), barrier)
        directory.quiet = True
        run = pipeline.run_steps(settings, directory, steps, splits, logging.info)
    if temporary:
        weakref.finalize(run, shutil.rmtree, path, ignore_errors=True)
    return run


def refine(run: Run, prototypes: Sequence[int], action: str = "swap", name: str = "", **settings: Any) -> str:
    """Acts on prototypes of a run, as `Run.refine` says.

    Returns:
      The name of the refinement.
    """
    if run.config.model.name == OWN:
        raise InputError(
            f"{run.path} explains a model of your own, which is not refined; allowed: a run of a network that was "
            "trained here; act on its prototypes in your own training"
        )
    given = [prototypes] if isinstance(prototypes, (int, np.integer)) else list(prototypes)
    called = name or "-".join(map(str, (action, *given)))
    chosen = {"name": called, "prototypes": given, "actions": (action,)} | settings
    whole = config_lib.to_dict(run.config)
    wanted = from_config_dict(whole | {"refine": whole["refine"] | chosen})
    if not wanted.refine.prototypes:
        raise InputError("no prototypes were given; allowed: their numbers, such as prototypes=[7]; see Run.ranking")
    directory = RunDirectory(run.path, is_main(), barrier, called)
    directory.quiet = True
    pipeline.run_steps(wanted, directory, pipeline.needed_steps(["refine"]), run.splits, logging.info)
    return called


def explain_repaired(run: Run, action: str, name: str, workdir: str | os.PathLike[str] | None) -> Run:
    """Explains what a repair changed, as `Run.explain_repaired` says."""
    if action == "drop":
        raise InputError(
            "action 'drop' changes no weights, and has nothing to explain; allowed: an action that trains, such as "
            "'swap'; look at run.ranking, which tells what leaving out each prototype does"
        )
    _, repaired = run.repaired(action, name)
    table, explained, last = run.refinements[name], run.config.explain, int(run.steps[-1])
    steps = table["repair"]["phases"] * steps_per_pass(len(run.dataset.labels), run.config.train.batch_size)
    settings = {
        "seed": run.config.seed,
        "explain": dataclasses.asdict(explained),
        "model": {"allow_1x1": run.config.model.allow_1x1},
        "refine": {"pair": tuple(table["pair"])},
    }
    held_out = {split: each for split, each in run.splits.sets().items() if split != "train"}
    kept = [(last, run.variables(last)), (last + steps, repaired)]
    return explain(run.model, kept, run.dataset, settings, workdir, **held_out)


def _check_levels(dataset, what):
    if dataset.images.dtype != np.uint8:
        raise InputError(
            f"the images of dataset are {dataset.images.dtype} for {what}; allowed: uint8 of 0 to 255; convert them"
        )


def _check_switches(**given):
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; allowed: True or False; set {name}")


@contextlib.contextmanager
def _folder(workdir, began):
    """The run directory, and whether it is temporary; one that was made for nothing is removed.

    `began` tells of a path whether it holds work that can be gone on from, which is kept.
    """
    if workdir is None and jax.process_count() > 1:
        raise InputError("no workdir given to several processes; allowed: one that all of them share; set workdir")
    if workdir is not None and not isinstance(workdir, (str, os.PathLike)):
        raise InputError(f"workdir is {workdir!r}; allowed: a path, or None for a temporary folder; set workdir")
    path = pathlib.Path(tempfile.mkdtemp(prefix="i2x_jax-") if workdir is None else workdir)
    made = workdir is None or not path.exists()
    try:
        yield path, workdir is None
    except BaseException as error:
        if made and is_main() and (workdir is None or (isinstance(error, InputError) and not began(path))):
            shutil.rmtree(path, ignore_errors=True)
        raise


def _settings(config):
    """All settings; what belongs to a network trained here is at its default, so that a run does not tell it."""
    full = config if isinstance(config, Config) else from_config_dict({} if config is None else config)
    return dataclasses.replace(
        full,
        data=DataConfig(name=OWN, **{key: getattr(full.data, key) for key in ANY_NETWORK}),
        model=ModelConfig(name=OWN, allow_1x1=full.model.allow_1x1),
        train=TrainConfig(),
    )


def _fitting(settings, config, own):
    """The settings with as many PCA dimensions as there are channels, unless the caller's config states them."""
    if isinstance(config, Config) or (config is not None and "pca_dims" in config.get("explain", {})):
        return settings
    dims = min(settings.explain.pca_dims, own.feature_shape[2])
    return dataclasses.replace(settings, explain=dataclasses.replace(settings.explain, pca_dims=dims))


def _splits(dataset, held_out, settings, caller):
    """The data as the steps take them; what was held out of `dataset` remembers its rows in it."""
    train = checked(dataset, "dataset")
    if unknown := held_out.keys() - HeldOut.__annotations__:
        raise TypeError(f"{caller}() got an unexpected keyword argument {min(unknown)!r}")
    given = {name: checked(each, name, like=train) for name, each in held_out.items() if each is not None}
    train = train.take(np.arange(len(train.labels)))
    for name, seed in (("test", TEST_SEED), ("validation", settings.seed)):
        if name not in given:
            train, given[name] = hold_out(train, settings.data.validation, seed)
    if 0 < settings.data.max_train < len(train.labels):
        train = hold_out(train, settings.data.max_train / len(train.labels), settings.seed)[1]
    splits = Splits(train, **given)
    check_classes(splits)
    return planted.completed(splits, settings.data, settings.seed)


def _checkpoints(checkpoints):
    """Steps, and how to get their variables."""
    if isinstance(checkpoints, (str, os.PathLike)):
        checkpoints = OrbaxCheckpoints(checkpoints)
    if isinstance(checkpoints, OrbaxCheckpoints):
        items = foreign_items(pathlib.Path(checkpoints.directory), checkpoints.item)
        return [Checkpoint(step, functools.partial(restore_foreign, each, checkpoints.like)) for step, each in items]
    if isinstance(checkpoints, Mapping) or not isinstance(checkpoints, Iterable):
        raise InputError(
            f"checkpoints is a {type(checkpoints).__name__}; allowed: a list of variables, of pairs of step and "
            "variables, or the path of an Orbax folder"
        )
    listed = list(checkpoints)
    paired = [isinstance(e, tuple) and len(e) == 2 and isinstance(e[0], (int, np.integer)) for e in listed]
    if any(paired) and not all(paired):
        raise InputError("checkpoints holds variables with a step and without; allowed: one or the other; add steps")
    pairs = listed if any(paired) else enumerate(listed)
    return [Checkpoint(int(step), lambda tree=tree: tree) for step, tree in pairs]


def _cut(model, like, dataset, allow_1x1):
    """The network as the steps take it, held against variables and images by tracing it, which computes nothing."""
    if not isinstance(model, (OwnModel, Model)):
        raise InputError(f"model is a {type(model).__name__}; allowed: an i2x_jax.OwnModel(features, head)")
    shape, classes = dataset.images.shape[1:], len(dataset.class_names)
    batch = jax.ShapeDtypeStruct((2, *shape), dataset.images.dtype)
    features = jax.eval_shape(model.features, like, batch)
    if not _is_batch(features, 4):
        raise InputError(
            f"`features` returned {_described(features)} for 2 images; allowed: a float array [2, h, w, d]; cut the "
            "network where it still has a map"
        )
    logits = jax.eval_shape(model.head, like, features)
    if not _is_batch(logits, 2) or logits.shape[1] != classes:
        raise InputError(
            f"`head` returned {_described(logits)} for the features of 2 images; allowed: a float array "
            f"[2, {classes}], a logit for each of the {classes} class names; check both"
        )
    if features.shape[1] * features.shape[2] == 1 and not allow_1x1:
        raise InputError(
            "`features` returned a map of 1x1; allowed: at least two locations; cut the network earlier, or set "
            "model.allow_1x1"
        )
    if isinstance(model, Model):
        return dataclasses.replace(model, feature_shape=features.shape[1:])
    if not isinstance(model.receptive_field, int) or model.receptive_field < 0:
        raise InputError(f"receptive_field is {model.receptive_field!r}; allowed: pixels, or 0 to have them measured")
    return Model(
        # Given a NumPy array, `images / 255` would be float64, and another function than when it is traced.
        features=lambda variables, images: model.features(variables, jnp.asarray(images)).astype(jnp.float32),
        head=lambda variables, features: model.head(variables, features).astype(jnp.float32),
        init=None,
        train_logits=None,
        batch_statistics=None,
        linear_head=model.linear_head,
        feature_shape=features.shape[1:],
        places=by_cells(shape, features.shape[1:3]),
        tap="",
    )


def _is_batch(value, rank):
    return isinstance(value, jax.ShapeDtypeStruct) and (
        jnp.issubdtype(value.dtype, jnp.floating) and len(value.shape) == rank and value.shape[0] == 2
    )


def _described(value):
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, jax.ShapeDtypeStruct) else type(value).__name__


def _placed(model, variables, dataset, receptive_field):
    """The network with the places of its locations as measured, and with the receptive field that was given, if any."""
    places = measured_places(model.features, variables, dataset.images[:IMAGES_PROBED])
    if receptive_field:
        places = Places(*(span._replace(side=receptive_field) for span in places))
    return dataclasses.replace(model, places=places)


def _tolerance(model, like, dataset):
    """How far logits may be from those of a closed form, by the largest, as the number types of the network have it."""
    images = jax.ShapeDtypeStruct((2, *dataset.images.shape[1:]), dataset.images.dtype)
    features = jax.eval_shape(model.features, like, images)
    types = [each.dtype for each in (features, jax.eval_shape(model.head, like, features), *jax.tree.leaves(like))]
    half = any(jnp.issubdtype(each, jnp.floating) and jnp.finfo(each).bits < 32 for each in types)
    return SAME_LOGITS_IN_HALF if half else SAME_LOGITS


def _with_linear_head(model, given, dataset, tolerance):
    """The network with the closed form of its head, if it has one: that was given, or that images show.

    In half precision the closed form also takes the place of the head: sums are then exact.

    Raises:
      InputError: one was given that does not give the logits of `head`.
    """
    closed = model.linear_head or linear_head_of(model.head, model.feature_shape)
    d, classes = model.feature_shape[2], len(dataset.class_names)
    for held in dict.fromkeys((given[0], given[-1])):
        variables = replicate(held.load())
        weights, bias = closed(variables)
        if weights.shape != (d, classes) or bias.shape != (classes,):
            raise InputError(
                f"`linear_head` returned {list(weights.shape)} and {list(bias.shape)}; allowed: weights "
                f"[{d}, {classes}] and bias [{classes}]; transpose them, or leave linear_head out"
            )
        features = model.features(variables, dataset.images[:IMAGES_COMPARED])
        with jax.default_matmul_precision("highest"):
            found, logits = fetch((pooled(closed)(variables, features), model.head(variables, features)))
        missed = np.abs(found - logits).max()
        if missed <= tolerance * np.abs(logits).max():
            continue
        if model.linear_head:
            raise InputError(
                f"`linear_head` misses the logits of `head` by up to {missed:.3g}; allowed: the same logits; leave "
                "linear_head out, what the head is will be found out"
            )
        return model
    return dataclasses.replace(
        model, linear_head=closed, head=model.head if tolerance == SAME_LOGITS else pooled(closed)
    )
