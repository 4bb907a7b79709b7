"""The stage `train`: images to checkpoints (DESIGN 2.1)."""

import functools
import itertools
import pathlib
from collections.abc import Collection, Sequence

import jax
import numpy as np

from i2x_jax.config import Config, InputError
from i2x_jax.data.dataset import Dataset, steps_per_pass
from i2x_jax.devices.mesh import fetch, replicate
from i2x_jax.models import torch_weights
from i2x_jax.models.model import Variables
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.arrays import read_array
from i2x_jax.results.files import CHECKPOINTS
from i2x_jax.results.opened_run import Run
from i2x_jax.training import loop as training
from i2x_jax.training.checkpoints import (
    Checkpoints,
    choose_by_movement,
    movement,
    not_finite,
    present_steps,
    select_steps,
)

# Training images whose confidences tell where checkpoints are wanted.
PROBE_IMAGES = 512


def checkpoint_steps(config: Config, train: Dataset) -> tuple[int, ...]:
    """The steps whose checkpoints are analysed; with `train.checkpoints` 'moved' those of which they are chosen."""
    total = steps_per_pass(len(train.labels), config.train.batch_size) * config.train.epochs
    return select_steps(config.train.checkpoints, config.train.num_checkpoints, total)


def initial_variables(directory: RunDirectory, work: Run) -> Variables:
    """The weights of step 0: drawn with the config's seed, or read from `model.init_from`.

    A classifier for another number of classes than the data's is left as drawn, and a line printed that says so.
    """
    config = work.config
    drawn = work.model.init(jax.random.key(config.seed))
    source = config.model.init_from
    if not source:
        return drawn
    tensors = torch_weights.read(source)
    variables, other_classes = torch_weights.from_torch(config.model.name, tensors, drawn, source)
    if other_classes:
        directory.say(
            f"{source} knows {other_classes} classes and the data have {len(work.dataset.class_names)}: "
            "its classifier is not used, a new one is drawn"
        )
    return variables


def measure(directory: RunDirectory, work: Run, variables: Variables, step: int, last: bool) -> None:
    """Adds loss and accuracy of a kept checkpoint to metrics.jsonl.

    Train, test, audit and unbiased sets are measured once, at the end; validation is what choices are made on.

    Raises:
      NotFiniteError: a loss is not; the last step before a checkpoint may ruin weights whose loss was still finite.
    """
    sets = work.splits.sets()
    for split in dict.fromkeys(["validation", *sets]) if last else ["validation"]:
        dataset = sets[split]
        logits = training.predict(work.model, variables, dataset, work.config.explain.batch_size)
        loss, accuracy = training.loss_and_accuracy(logits, dataset.labels)
        if not np.isfinite(loss):
            raise training.NotFiniteError(step)
        directory.add_metrics(step, split, loss, accuracy)


def train(directory: RunDirectory, work: Run) -> None:
    """Trains, or goes on training, and writes checkpoints/, metrics.jsonl and what `save_rows` says (DESIGN 2.1).

    Raises:
      InputError: the loss was not finite at some step.
    """
    planned = planned_steps(directory, work)
    with Checkpoints(directory.path / CHECKPOINTS) as checkpoints:
        descend(directory, work, checkpoints, planned)
        kept = chosen_steps(directory, work, checkpoints, planned)
    if kept != planned:
        directory.replace_metrics(functools.partial(metrics_of, kept=kept))
    with directory.making("train") as folder:
        save_rows(folder, work.dataset, kept)
    # Last: killed before that, they are there to choose from, and killed meanwhile, it is known which are not wanted.
    directory.discard_checkpoints()


def save_rows(folder: pathlib.Path, explained: Dataset, steps: Sequence[int]) -> None:
    """labels.npy and rows.npy of the training images that are explained, and steps.npy of the kept checkpoints."""
    np.save(folder / "rows.npy", np.asarray(explained.given_rows, np.int64))
    np.save(folder / "labels.npy", explained.labels)
    np.save(folder / "steps.npy", np.array(steps, np.int32))


def planned_steps(directory: RunDirectory, work: Run) -> tuple[int, ...]:
    """The steps at which this training keeps checkpoints, at least until it ends.

    Where it had ended and one of its checkpoints was lost, they are those that it had chosen.
    """
    planned, path = checkpoint_steps(work.config, work.splits.train), directory.path / "steps.npy"
    chosen = tuple(read_array(path, {}).tolist()) if path.exists() else ()
    return chosen if set(chosen) <= set(planned) and chosen[-1:] == planned[-1:] else planned


def descend(directory: RunDirectory, work: Run, checkpoints: Checkpoints, kept: tuple[int, ...]) -> None:
    """Trains to the last of the steps `kept`, from the last checkpoint that is there, and writes metrics.jsonl.

    Raises:
      InputError: the loss was not finite at some step.
    """
    config, model, splits = work.config, work.model, work.splits
    settings = config.train
    # Between two kept checkpoints others are written, to go on from, and removed when they are passed.
    every = settings.resume_every or kept[-1]
    stops = sorted({*kept, *range(every, kept[-1], every)})
    optimizer = training.make_optimizer(
        settings.optimizer, settings.learning_rate, settings.weight_decay, kept[-1], settings.warmup
    )
    recipe = training.Recipe(model, optimizer, config.data.augment, settings.batch_size, config.seed)
    calibration = training.batch_norm_images(splits.train, config.seed)
    state = training.init_state(initial_variables(directory, work), optimizer)
    totals = training.zero_totals()
    present = present_steps(directory.path / CHECKPOINTS)
    reached, passing = resume_step(present, kept), set(present) - set(kept)
    directory.barrier("train: checkpoints listed")
    directory.cut_metrics(-1 if reached is None else reached)

    def keep(step, state, totals):
        variables = training.recompute_batch_norm(model, state.variables, calibration)
        check_finite(variables, step, directory.path)
        if step in kept:
            measure(directory, work, variables, step, last=step == kept[-1])
        checkpoints.save(step, variables, (state.opt_state, totals))
        checkpoints.remove(passing - {step})
        passing.clear()
        passing.update({step} - set(kept))

    if reached is None:
        reached = 0
        keep(0, state, totals)
    else:
        variables, (opt_state, totals) = checkpoints.restore(reached, state.variables, (state.opt_state, totals))
        state = training.TrainState(variables, opt_state, replicate(np.int32(reached)))
    with directory.progress_bar("training", (kept[-1] - reached) * settings.batch_size, "image") as bar:
        for start, stop in itertools.pairwise([reached, *(stop for stop in stops if stop > reached)]):
            if start in kept:
                totals = training.zero_totals()
            try:
                state, totals = training.run_steps(recipe, state, totals, splits.train, start, stop, bar.update)
                if stop in kept:
                    loss, correct, count, _ = fetch(totals)
                    directory.add_metrics(stop, "batches", float(loss) / int(count), int(correct) / int(count))
                keep(stop, state, totals)
            except training.NotFiniteError as error:
                checkpoints.wait()
                raise InputError(
                    f"the loss is not finite at step {error.step}; the last good checkpoint is "
                    f"{directory.path / CHECKPOINTS / str(start)}; allowed: a finite loss; train in another "
                    f"workdir with a lower train.learning_rate than {settings.learning_rate}"
                ) from None
    # A process may have been killed between its last checkpoint and the removal of the one before.
    checkpoints.remove(passing)


def chosen_steps(
    directory: RunDirectory, work: Run, checkpoints: Checkpoints, planned: tuple[int, ...]
) -> tuple[int, ...]:
    """Those of the planned steps that are analysed: all, or with `train.checkpoints` 'moved' those that it chooses.

    Read back from the checkpoints, so that a training that was killed chooses as one that was not.
    """
    settings = work.config.train
    if settings.checkpoints != "moved" or len(planned) <= settings.num_checkpoints:
        return planned
    checkpoints.wait()
    probe, moved, before = probe_images(work.splits.train, work.config.seed), [], None
    with directory.progress_bar("checkpoints", len(planned), "checkpoint") as bar:
        for step in planned:
            variables = checkpoints.restore_variables(step, work.abstract_variables)
            logits = training.predict(work.model, variables, probe, work.config.explain.batch_size)
            after = training.confidence(logits)
            moved += [] if before is None else [movement(before, after)]
            before = after
            bar.update(1)
    return choose_by_movement(planned, moved, settings.num_checkpoints)


def probe_images(train: Dataset, seed: int) -> Dataset:
    """Up to 512 training images, drawn with the seed."""
    count = min(len(train.labels), PROBE_IMAGES)
    # Not the images, as far as can be, whose statistics BatchNorm is given: another stream of the seed.
    drawn = np.random.default_rng((seed, PROBE_IMAGES)).choice(len(train.labels), count, replace=False)
    return train.take(np.sort(drawn))


def metrics_of(lines: Sequence[dict], kept: Collection[int]) -> list[dict]:
    """The lines of metrics.jsonl that the kept steps would have had, had no others been planned.

    Args:
      lines: of all planned steps, or of some of which the kept ones are part, in order.
      kept: steps.

    Returns:
      The lines of the kept steps; of the split `batches` the mean over all batches since the kept step before.
    """
    found, part, before = [], [], 0
    for line in lines:
        if line["split"] == "batches":
            part.append((line["step"] - before, line))
            before = line["step"]
        if line["step"] in kept:
            found.append(_over_all(part) if line["split"] == "batches" else line)
            part = [] if line["split"] == "batches" else part
    return found


def _over_all(part):
    """The line that several lines of `batches` make, each with its number of steps, all of which are as large."""
    *_, (_, last) = part
    if len(part) == 1:
        return last
    weights = [steps for steps, _ in part]
    means = {
        name: float(np.average([line[name] for _, line in part], weights=weights)) for name in ("loss", "accuracy")
    }
    return last | means


def check_finite(variables: Variables, step: int, path: pathlib.Path) -> None:
    """Raises `InputError` for variables that could not be read again: a loss may be finite although they are not."""
    if name := not_finite(variables):
        raise InputError(
            f"{name} at step {step} of {path} holds NaN or infinity; allowed: finite weights and statistics; train in "
            "another --workdir, perhaps with a lower --config.train.learning_rate"
        )


def resume_step(present: tuple[int, ...], kept: tuple[int, ...]) -> int | None:
    """The last step that training can go on from without leaving out a checkpoint that is to be kept."""
    for step in reversed(present):
        if {each for each in kept if each <= step} <= set(present):
            return step
    return None
