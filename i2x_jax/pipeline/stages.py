"""The stages of a run in order, and what is checked before the first (DESIGN sections 3 and 4)."""

import functools
import math
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata

import jax
import numpy as np

from i2x_jax import config as config_lib
from i2x_jax.config import Config, InputError, printable
from i2x_jax.data import reading
from i2x_jax.data.dataset import Splits, fingerprint
from i2x_jax.data.part import check_part, explained
from i2x_jax.data.source import files_of
from i2x_jax.devices.mesh import barrier, is_main
from i2x_jax.explanation.rivals import MANY_CLASSES
from i2x_jax.models import torch_weights
from i2x_jax.models.model import Model
from i2x_jax.pipeline import needs, tensorboard
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.explain import draw_contact_sheet, map_changes
from i2x_jax.pipeline.measure import measure_evidence
from i2x_jax.pipeline.prototypes import find_prototypes, locations_wanted
from i2x_jax.pipeline.rank import rank_prototypes
from i2x_jax.pipeline.refine import refine
from i2x_jax.pipeline.report import write_report
from i2x_jax.pipeline.train import checkpoint_steps, train
from i2x_jax.pipeline.trust import check_trustable, measure_trust
from i2x_jax.results.files import ASKED, CONFIG, IN_ORDER, PICTURES, REPORT, STEPS, TENSORBOARD, read_header, steps_of
from i2x_jax.results.opened_run import Run, dataset_of, model_of
from i2x_jax.training import loop as training

MAKERS: dict[str, Callable[[RunDirectory, Run], None]] = {
    "train": train,
    "prototypes": find_prototypes,
    "evidence": measure_evidence,
    "ranking": rank_prototypes,
    "mapping": map_changes,
    "contact_sheet": draw_contact_sheet,
    "refine": refine,
    "report": write_report,
    "trust": measure_trust,
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "pillow")
MAX_PROTOTYPES = np.iinfo(np.int16).max


def run(
    config: Config,
    workdir: str,
    stages: Iterable[str],
    data_dir: str | None = None,
    events: bool = False,
    quiet: bool = False,
) -> None:
    """Runs stages, and before them whatever they need that is not there yet; finished steps are not done again.

    Args:
      config: all settings.
      workdir: the run directory, new or of the same config.
      stages: of `results.files.STAGES` and `ASKED_STAGES`.
      data_dir: where prepared data sets are.
      events: write the metrics as TensorBoard events too.
      quiet: print nothing and show no progress bars.

    Raises:
      InputError: settings, data or directory cannot be used; nothing finished is touched.
    """
    if events:
        tensorboard.check_installed()
    directory = RunDirectory(workdir, is_main(), barrier, config.refine.name)
    directory.quiet = quiet
    splits = dataset_of(config, data_dir, directory.path / PICTURES)
    run_steps(config, directory, needed_steps(stages), splits, directory.say, events)


def dry_run(config: Config, workdir: str, stages: Iterable[str], data_dir: str | None = None) -> str:
    """What a run would read, hold in memory, write and take, in words; nothing is written.

    Arguments as in `run`.

    Raises:
      InputError: settings, data or directory cannot be used, or the run does not fit memory or disk.
    """
    directory = RunDirectory(workdir, refinement=config.refine.name)
    splits = dataset_of(config, data_dir, directory.path / PICTURES)
    model = model_of(config, splits.train)
    check_feasible(config, splits, model)
    scale, steps = needs.scale_of(config, splits, model), needed_steps(stages)
    found = needs.needs_of(config, splits, model, scale)
    found = needs.measured(found, config, model, scale, splits.train.images.shape[1:])
    needs.check_fits(found, steps, directory.path)
    return needs.told(found, steps, directory.path)


def needed_steps(stages: Iterable[str]) -> list[str]:
    """The steps of some stages and all that they need, in order; what is asked for by name needs the explanation."""
    named = steps_of(stages)
    ordered = list(STEPS)
    last = max(ordered.index("contact_sheet" if step in ASKED else step) for step in named)
    return [step for step in IN_ORDER if step in ordered[: last + 1] or step in named]


def run_steps(
    config: Config,
    directory: RunDirectory,
    steps: Sequence[str],
    splits: Splits,
    say: Callable[[str], None],
    events: bool = False,
) -> Run:
    """Makes those steps of a run, in order, that are not complete, on data that are at hand.

    Args:
      config: all settings.
      directory: new or of the same config.
      steps: of `results.files.STEPS` and `ASKED`; each needs what those before it make.
      splits: the data.
      say: told a line at the start, and one a step.
      events: write the metrics as TensorBoard events too.

    Returns:
      The run, with data and model at hand.

    Raises:
      InputError: as `run`.
    """
    model = model_of(config, splits.train)
    check_feasible(config, splits, model)
    if "trust" in steps:
        check_trustable(model)
    if events:
        directory.open_events = event_file_of(directory, config, splits)
    # Once training is done, the weights that it started from are not needed any more.
    source = None if directory.complete("train") else config.model.init_from
    if source:
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        torch_weights.from_torch(config.model.name, torch_weights.read(source), shapes, source)
    wanted = needs.needs_of(config, splits, model, needs.scale_of(config, splits, model))
    needs.check_fits(wanted, steps, directory.path)
    with directory.locked():
        directory.check_config(config)
        directory.barrier("directory checked")
        write_header(directory, config, splits, {"init_from_sha256": torch_weights.sha256(source)} if source else {})
        directory.barrier("header written")
        work = Run(directory.path)
        # At hand already: reading data and tracing a large network again would take seconds.
        work.splits, work.model = splits, model
        makers = {step: MAKERS[step] for step in steps}
        if "refine" in makers:
            makers["refine"] = functools.partial(refine, settings=config.refine)
        if "report" in makers:
            say(f"The report will be {directory.path / REPORT}")
        else:
            say(f"The run directory is {directory.path}")
        if left_out := getattr(files_of(splits.train.images), "left_out", ()):
            path, reason = left_out[0]
            say(printable(f"{len(left_out)} files are left out, listed in {CONFIG}: {path} {reason}, ..."))
        make_steps(directory, work, makers, say)
    return work


def make_steps(
    directory: RunDirectory,
    work: Run,
    makers: Mapping[str, Callable[[RunDirectory, Run], None]],
    say: Callable[[str], None],
) -> None:
    """Makes those steps, in order, that are not complete; the process that writes tells `say` a line about each.

    Args:
      directory: where their files go.
      work: the same, to read from.
      makers: what makes each step, by its name in `results.files.STEPS`.
      say: told one line a step.
    """
    for number, (step, make) in enumerate(makers.items(), 1):
        done = directory.complete(step)
        directory.barrier(f"{step} starts")
        started = time.perf_counter()
        if not done:
            make(directory, work)
        directory.begin_events()
        directory.barrier(f"{step} ends")
        seconds = time.perf_counter() - started
        if not done:
            directory.add_timing(step, seconds)
        if directory.main:
            say(f"[{number}/{len(makers)}] {step}: {'already done' if done else f'done in {seconds:.1f} s'}")


def check_feasible(config: Config, splits: Splits, model: Model) -> None:
    """Raises `InputError` for settings that do not fit the data, the model or the devices, before any work is done."""
    check_explainable(config, splits, model)
    if config.train.batch_size % jax.device_count():
        raise InputError(
            f"config key train.batch_size is {config.train.batch_size}; allowed: a multiple of the "
            f"{jax.device_count()} devices; set train.batch_size"
        )
    checkpoint_steps(config, splits.train)


def check_explainable(config: Config, splits: Splits, model: Model) -> None:
    """Raises `InputError` for settings of the explanation that do not fit the data or the model."""
    explain, train = config.explain, splits.train
    check_part(train, explain, config.refine.pair, config.seed)
    h, w, d = model.feature_shape
    count = len(explained(train, explain, config.seed).labels)
    places = min(
        count * h * w,
        locations_wanted(explain.max_locations, explain.num_prototypes) or math.inf,
    )
    for key, value, high, what in (
        ("explain.num_prototypes", explain.num_prototypes, places, "feature locations that K-means is fitted on"),
        ("explain.num_prototypes", explain.num_prototypes, MAX_PROTOTYPES, "prototypes that fit an int16"),
        ("explain.pca_dims", explain.pca_dims, d, "feature channels at this tap"),
        ("explain.rivals", explain.rivals, len(train.class_names), "classes"),
    ):
        if value > high:
            raise InputError(f"config key {key} is {value}; allowed: at most {high}, the {what}; set {key}")
    if explain.group_by == "global" and len(train.class_names) > MANY_CLASSES:
        raise InputError(
            f"config key explain.group_by is 'global' with {len(train.class_names)} classes; allowed: 'class' above "
            f"{MANY_CLASSES}, where each class keeps the confidences in its rivals only; set explain.group_by"
        )
    check_actions(config, model)
    unknown = [name for name in config.refine.pair if name not in train.class_names]
    if unknown:
        raise InputError(
            f"config key refine.pair names {unknown[0]!r}; allowed: {', '.join(train.class_names)}; set refine.pair"
        )


def check_actions(config: Config, model: Model) -> None:
    """Raises `InputError` for prototypes that there are not, and for actions that the head does not allow."""
    k = config.explain.num_prototypes
    if unknown := [each for each in config.refine.prototypes if each >= k]:
        raise InputError(
            f"config key refine.prototypes names {unknown[0]}; allowed: 0 to {k - 1}, the {k} prototypes of this run; "
            "set refine.prototypes"
        )
    if config.refine.acts and (config.explain.classes or config.explain.max_images):
        raise InputError(
            "config key refine.prototypes or refine.pick is set where a part of the training images is explained; "
            "allowed: either; masks need the prototypes of every training image: explain all in another --workdir"
        )
    if config.refine.acts and "drop" in config.refine.actions and not model.linear_head:
        raise InputError(
            "config key refine.actions names 'drop' for a head that is no pool and linear layer; allowed: actions that "
            "train, such as 'swap'; set refine.actions"
        )


def event_file_of(
    directory: RunDirectory, config: Config, splits: Splits
) -> Callable[[list[dict]], tensorboard.EventFile]:
    """How a run directory opens its event file.

    Returns:
      What makes the event file from the lines of metrics.jsonl that are there already.
    """
    settings, total = config.train, checkpoint_steps(config, splits.train)[-1]
    rate = training.learning_rate_schedule(settings.learning_rate, total, settings.warmup)
    return lambda lines: tensorboard.EventFile(directory.path / TENSORBOARD, lines, lambda step: float(rate(step - 1)))


def write_header(directory: RunDirectory, config: Config, splits: Splits, weights: Mapping[str, str]) -> None:
    """Writes config.json, or checks that the data are still those that the run was made with.

    So are the weights that were given, if any. The settings of the refinement are the run's own from the moment that
    the explanation is begun, which goes by them.

    Args:
      directory: of the run.
      config: all settings.
      splits: whose fingerprints are kept.
      weights: fingerprints of weights that were given, as `init_from_sha256` or `checkpoints_sha256`.

    Raises:
      InputError: the run was begun with other data, other initial weights or other checkpoints.
    """
    settings = config_lib.to_dict(config)
    prints = {name: fingerprint(split) for name, split in splits.sets().items()}
    files = [found for split in splits.sets().values() if (found := files_of(split.images)) is not None]
    if (directory.path / CONFIG).exists():
        header = read_header(directory.path)
        made_with = header["provenance"]
        if any(digest != made_with.get(name) for name, digest in weights.items()):
            what = f"weights in {config.model.init_from}" if config.model.init_from else "checkpoints"
            raise InputError(
                f"the {what} differ from those that {directory.path} was begun with; allowed: the same; restore them "
                "or choose another workdir"
            )
        changed = [name for name in prints if prints[name] != made_with["data_fingerprint"].get(name)]
        if changed:
            how = reading.changes(reading.read_known(directory.path / PICTURES), files) if files else ""
            raise InputError(
                f"the {changed[0]} images of {config.data.name} differ from those that {directory.path} was made with"
                f"{f' ({how})' if how else ''}; allowed: the same data; restore it or choose another workdir"
            )
        directory.keep_pictures(files)
        if not directory.complete("evidence") and header["config"]["refine"] != settings["refine"]:
            directory.write_json(CONFIG, header | {"config": settings})
        return
    images = {name: len(split.labels) for name, split in splits.sets().items()}
    provenance = {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "devices": [str(device) for device in jax.devices()],
        "platform": jax.default_backend(),
        "git_revision": git_revision(),
        "data_fingerprint": prints,
        "images": images | {"explained": len(explained(splits.train, config.explain, config.seed).labels)},
    }
    if left_out := {path: reason for each in files for path, reason in each.left_out}:
        provenance["left_out"] = left_out
    provenance |= weights
    header = {"config": settings, "provenance": provenance, "timing": {}, "peak_memory": {}}
    directory.write_json(CONFIG, header)
    directory.keep_pictures(files)


def git_revision() -> str | None:
    """The revision of the checkout this code runs from, if it is one."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
