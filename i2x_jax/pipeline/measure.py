"""The step `evidence`: all images once, by all checkpoints, to everything that is measured (DESIGN 2.3, 2.4, 2.10).

Rows are done in blocks, and what the finished ones add up to is kept on disk: a run that was stopped goes on with the
block it was at, and ends with equal files, because blocks are added up in their order. They follow neither batches nor
devices.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from i2x_jax.config import InputError
from i2x_jax.data.dataset import Batch, Dataset, batches
from i2x_jax.data.part import hashes, turns
from i2x_jax.devices.host_memory import release
from i2x_jax.devices.mesh import ahead, divisible, fetch, own_rows, own_rows_of, replicate, shard, shard_own
from i2x_jax.evidence import measuring, prototypes
from i2x_jax.explanation.analysis import choose_kept
from i2x_jax.explanation.rivals import is_narrow
from i2x_jax.models.model import Model, Tapped, Variables
from i2x_jax.pipeline import summing
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import ACCOUNT, ACCOUNTED, CHECKPOINTS, LEDGER
from i2x_jax.results.opened_run import Run
from i2x_jax.training import loop as training

ROWS_PER_BLOCK = 4096
# Bytes of variables that are held on the device for all checkpoints at once; more are read in turn.
DEVICE_VARIABLES = 2**31
STEP = "evidence"
# Folder of what only serves to go on with the step: sums so far, and rows that are not kept as they are.
WORKING, SUMS, RIVALS = "working", "sums.npz", "rivals.npy"
# The number of blocks that the sums so far are of.
BLOCKS = "blocks"
Sums = dict[str, np.ndarray]


class Checkpoints(NamedTuple):
    """What all batches share.

    Attributes:
      model: the classifier.
      settings: what is measured.
      variables: from the number of a checkpoint, 0 to T-1, to its variables on the device.
      blanks: what crosses the tap of the blank image, at T checkpoints.
      pca: of the feature vectors.
      centroids: `[K, D]`.
      rivals: int `[M, R]`, the classes that are kept of the samples of each class.
    """

    model: Model
    settings: measuring.Measuring
    variables: Callable[[int], Variables]
    blanks: list[Tapped]
    pca: prototypes.Pca
    centroids: np.ndarray
    rivals: jax.Array


class Rows(NamedTuple):
    """What is measured of each sample, written to as it comes; see DESIGN section 4 for the shapes."""

    assignments: np.ndarray
    intensity: np.ndarray
    confidence: np.ndarray
    account: np.ndarray | None
    margin: np.ndarray | None


def measure_evidence(directory: RunDirectory, work: Run) -> None:
    """Held-out sets, then the training images: intensity, confidence, contributions and the ledger (DESIGN 2.4, 2.10).

    Raises:
      InputError: intensities or confidences that are not finite.
    """
    config, dataset = work.config, work.dataset
    with directory.making(STEP, keep=made_from(work)) as folder:
        held_out = measure_held_out(directory, work)
        for split, confidence in held_out.items():
            np.savez(folder / f"{split}.npz", labels=getattr(work.splits, split).labels, confidence=confidence)
        validation = held_out["validation"][-1], work.splits.validation.labels
        pair, rivals = choose_kept(config, dataset.class_names, *validation)
        explain = config.explain
        settings = measuring.Measuring(
            explain.num_prototypes, explain.cam, explain.target, pair, explain.ledger == "all", is_narrow(rivals)
        )
        some = None if isinstance(explain.ledger, str) else accounted_rows(dataset.labels, explain.ledger, config.seed)
        checkpoints = prepare(work, settings, rivals)
        rows, done, totals = open_rows(directory, work, settings, rivals)
        batch_size = rows_at_once(explain.batch_size, len(dataset.labels))
        with directory.progress_bar(STEP, len(dataset.labels), "image") as bar:
            for number, start in enumerate(range(0, len(dataset.labels), ROWS_PER_BLOCK)):
                stop = min(start + ROWS_PER_BLOCK, len(dataset.labels))
                if number < done:
                    bar.update(stop - start)
                    continue
                part = dataset.take(np.arange(start, stop))
                here = Rows(*(each if each is None else each[..., start:stop, :] for each in _by_row(rows)))
                add(totals, measure_block(checkpoints, part, here, work.steps, start, batch_size, bar.update))
                finish_block(directory, rows, number, totals)
        directory.barrier("evidence written")
        if some is not None:
            totals |= account_for(directory, checkpoints, dataset, some, work.steps, batch_size)
        blanks = [blank_parts(checkpoints, t) for t in range(len(work.steps))]
        if directory.main:
            write_sums(directory, work, settings, rivals, blanks, totals, some)
            save_margins(directory, work, rows, settings)


def accounted_rows(labels: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """The samples that are accounted for where not all are: of each class as many, by hash, ascending: int64 `[W]`.

    Args:
      labels: int `[N]`.
      wanted: how many in all, at most; at least one of each class.
      seed: of the hash.
    """
    each = max(1, wanted // len(np.unique(labels)))
    return np.flatnonzero(turns(hashes(np.arange(len(labels)), seed), labels) < each)


def account_for(
    directory: RunDirectory,
    checkpoints: Checkpoints,
    dataset: Dataset,
    some: np.ndarray,
    steps: np.ndarray,
    batch_size: int,
) -> Sums:
    """account.npy of some samples, which are seen a second time, and the sums that the ledger is made of.

    A run that is stopped here does this anew, and nothing else.
    """
    with_ledger = checkpoints.settings._replace(ledger=True, pair=())
    shape = len(steps) - 1, len(some), with_ledger.num_prototypes + 1
    account, totals = directory.shared_memmap(STEP, ACCOUNT, np.float32, shape), {}
    with directory.progress_bar("ledger", len(some), "image") as bar:
        for start in range(0, len(some), ROWS_PER_BLOCK):
            part = slice(start, start + ROWS_PER_BLOCK)
            rows = Rows(None, None, None, account[:, part], None)
            one, held = checkpoints._replace(settings=with_ledger), dataset.take(some[part])
            add(totals, measure_block(one, held, rows, steps, start, batch_size, bar.update))
    account.flush()
    directory.barrier("accounts written")
    wanted = {"seeing", "weighing", "bias", "coarse", "path_error", "largest_residual", "largest_logit"}
    wanted |= {"seeing_square", "weighing_square", "coarse_missed"}
    return {name: value for name, value in totals.items() if name.partition(" ")[0] in wanted}


def made_from(work: Run) -> str:
    """A text that differs if prototypes or checkpoints do; what else there is, a run directory has one of.

    Weights are told by the size and the time of their files: reading gigabytes to be sure would take longer than most
    of what could be gone on with.
    """
    prototypes_digest = hashlib.sha256((work.path / "prototypes.npz").read_bytes()).hexdigest()
    weights = [
        (str(path.relative_to(work.path)), state.st_size, state.st_mtime_ns)
        for path in sorted((work.path / CHECKPOINTS).rglob("*"))
        if stat.S_ISREG((state := path.lstat()).st_mode)
    ]
    return repr((ROWS_PER_BLOCK, prototypes_digest, list(map(int, work.steps)), weights))


def rows_at_once(batch_size: int, samples: int) -> int:
    """How many samples a batch holds: where there are several blocks, they should fill their last batch too."""
    if samples <= ROWS_PER_BLOCK:
        return batch_size
    return -(-ROWS_PER_BLOCK // -(-ROWS_PER_BLOCK // batch_size))


def _by_row(rows):
    """Views in which the last axis but one counts samples: assignments have two axes behind that one."""
    n, h, w = rows.assignments.shape
    return rows._replace(assignments=rows.assignments.reshape(n, h * w))


def measure_held_out(directory: RunDirectory, work: Run) -> dict[str, np.ndarray]:
    """Confidence float32 `[T, n, M]` on every set but the training set, by its name, at every checkpoint."""
    held_out = {name: dataset for name, dataset in work.splits.sets().items() if name != "train"}
    confidence = {name: [] for name in held_out}
    images = len(work.steps) * sum(len(dataset.labels) for dataset in held_out.values())
    with directory.progress_bar("held-out images", images, "image") as bar:
        for step in work.steps:
            variables = work.variables(step)
            for name, dataset in held_out.items():
                logits = training.predict(work.model, variables, dataset, work.config.explain.batch_size, bar.update)
                confidence[name].append(training.confidence(logits))
    return {name: np.stack(values) for name, values in confidence.items()}


def prepare(work: Run, settings: measuring.Measuring, rivals: np.ndarray) -> Checkpoints:
    """What all batches share, from the files of a run; `rivals` int `[M, R]`."""
    found, model = work.arrays("prototypes"), work.model
    variables = variables_of(work)
    blank = replicate(measuring.blank_image(found["blank"], work.dataset.images))
    blanks = [measuring.batch_tapped(model, variables(t), blank) for t in range(len(work.steps))]
    pca = prototypes.pca_of(found)
    return Checkpoints(model, settings, variables, blanks, *replicate((pca, found["centroids"], rivals)))


def variables_of(work: Run) -> Callable[[int], Variables]:
    """From the number of a checkpoint to its variables: all held on the device if they fit, otherwise read in turn."""
    leaves = jax.tree.leaves(work.abstract_variables)
    size = sum(np.prod(leaf.shape, dtype=np.int64) * leaf.dtype.itemsize for leaf in leaves)
    if size * len(work.steps) > DEVICE_VARIABLES:
        return lambda t: work.variables(work.steps[t])
    held = [work.variables(step) for step in work.steps]
    return held.__getitem__


def open_rows(
    directory: RunDirectory, work: Run, settings: measuring.Measuring, rivals: np.ndarray
) -> tuple[Rows, int, Sums]:
    """The files that grow with the samples; how many blocks an earlier process has finished, and their sums.

    Args:
      directory: of the run.
      work: the same, to read from.
      settings: what is measured.
      rivals: int `[M, R]`; rows that were measured with others are measured anew.
    """
    samples, steps = len(work.dataset.labels), len(work.steps)
    h, w, _ = work.model.feature_shape
    k, m = settings.num_prototypes, rivals.shape[1] + 1 if settings.narrow else len(rivals)
    wanted = {
        "assignments": (np.int16, (samples, h, w)),
        "intensity": (np.float32, (steps, samples, k)),
        "confidence": (np.float32, (steps, samples, m)),
        "account": (np.float32, (steps - 1, samples, k + 1)) if settings.ledger else None,
        "margin": (np.float32, (steps, samples, k)) if settings.pair else None,
    }
    working = directory.partial(STEP) / WORKING
    files = {name: f"{WORKING}/{name}.npy" if name == "margin" else f"{name}.npy" for name in wanted}
    if directory.main:
        before = directory.partial(STEP) / RIVALS
        same = before.exists() and np.array_equal(np.load(before), rivals)
        if not (same and all(directory.kept(STEP, files[name], *what) for name, what in wanted.items() if what)):
            # Sums of rows that are lost count for nothing, now and whenever this is gone on with.
            shutil.rmtree(working, ignore_errors=True)
        np.save(before, rivals)
        working.mkdir(exist_ok=True)
    directory.barrier("blocks looked through")
    rows = Rows(**{name: what and directory.shared_memmap(STEP, files[name], *what) for name, what in wanted.items()})
    totals: Sums = {}
    if (working / SUMS).exists():
        with np.load(working / SUMS) as members:
            totals = dict(members)
    directory.barrier("blocks counted")
    return rows, int(totals.pop(BLOCKS, 0)), totals


def measure_block(
    checkpoints: Checkpoints,
    dataset: Dataset,
    rows: Rows,
    steps: np.ndarray,
    offset: int,
    batch_size: int,
    progress: Callable[[int], Any] = lambda count: None,
) -> Sums:
    """Measures a block of samples.

    Args:
      checkpoints: what all blocks share.
      dataset: the samples of the block.
      rows: written to; each process writes its own rows.
      steps: int `[T]`, to name them.
      offset: the first sample's row, to name it.
      batch_size: samples at a time; it changes rounding alone.
      progress: told after every batch how many samples it held.

    Returns:
      Sums over the block by name, float64; see `batch_sums` and DESIGN section 4.

    Raises:
      InputError: intensities or confidences that are not finite.
    """
    totals: dict[str, Any] = {}
    per_batch = divisible(batch_size)

    def measured():
        nonlocal totals
        for batch in batches(dataset, per_batch, own_rows_of(per_batch)):
            written, finite, sums = measure_batch(checkpoints, batch)
            # Of many classes and prototypes these are large: they stay on the device until the block is done.
            totals = measuring.added(totals, sums) if totals else sums
            yield batch, written, finite

    for batch, written, finite in ahead(measured()):
        bad = np.flatnonzero(~np.array(fetch(finite)))
        if len(bad):
            first = offset + batch.start
            raise InputError(
                f"saliency or confidence of samples {first} to {first + int(batch.mask.sum()) - 1} is not finite at "
                f"step {steps[bad[0]]}; allowed: finite numbers; look at the weights and the images of this run"
            )
        place = slice(batch.start, batch.start + int(batch.mask.sum()))
        for target, values in zip(rows, written, strict=True):
            if target is not None:
                write_rows(target, place, values)
        progress(place.stop - place.start)
    found: Sums = {}
    add(found, fetch(totals))
    return found


def write_rows(target: np.ndarray, place: slice, values: jax.Array | list[jax.Array]) -> None:
    """Writes the rows that this process has; those beyond `place` filled the batch up.

    Args:
      target: `[n, ...]` for an array, `[T, n, ...]` for a list of T.
      place: rows of the target.
      values: `[B, ...]` each.
    """
    for one, array in zip(target, values, strict=True) if isinstance(values, list) else ((target, values),):
        part = one[place]
        for where, piece in own_rows(array):
            inside = part[where]
            inside[:] = piece[: len(inside)]


def measure_batch(checkpoints: Checkpoints, batch: Batch) -> tuple[Rows, list[jax.Array], dict[str, jax.Array]]:
    """All checkpoints of one batch, the last one first: rows, whether each is finite, and sums; all on the device."""
    model, settings = checkpoints.model, checkpoints.settings
    blanks = [blank.features for blank in checkpoints.blanks]
    images, (labels, mask) = shard_own(batch.images, len(batch.mask)), shard((batch.labels, batch.mask))
    num_classes, num_kept = checkpoints.rivals.shape
    kept = None if num_kept == num_classes else checkpoints.rivals[labels]
    last = len(blanks) - 1
    # Each is asked for once: it may have to be read.
    variables = {last: checkpoints.variables(last)}
    tapped = measuring.batch_tapped(model, variables[last], images)
    places = measuring.assign_locations(checkpoints.pca, checkpoints.centroids, tapped.features)
    taken, accounts = [None] * (last + 1), [None] * last
    sums: dict[str, jax.Array] = {}

    def between(*ends):
        return measuring.Between(*zip(*((variables[t], blanks[t], taken[t].end) for t in ends), strict=True))

    for t in reversed(range(last + 1)):
        if t < last:
            variables[t] = checkpoints.variables(t)
            tapped = measuring.batch_tapped(model, variables[t], images)
        taken[t] = measuring.take(model, settings, variables[t], tapped, labels, places, blanks[t], kept)
        if settings.ledger and t < last:
            accounts[t] = measuring.account(model, between(t, t + 1), places, labels, mask, kept)
        found = batch_sums(taken[t], accounts[t] if t < last else None, labels, mask, num_classes)
        sums |= {f"{name} {t}": value for name, value in found.items()}
        # Of every checkpoint at once, these would be as large as the features.
        taken[t] = taken[t]._replace(maps=None, evidence=None, sums=None)
        if settings.ledger and t + 2 <= last:
            halves = accounts[t].account + accounts[t + 1].account
            path = measuring.path_differences(model, between(t, t + 2), places, halves, labels, mask, kept is None)
            sums |= {f"coarse_missed {t}": path[0], f"coarse {t}": path[1]}
            # What lies two checkpoints back is not needed any more, and its features should not stay.
            taken[t + 2] = taken[t + 2]._replace(end=None)
        variables.pop(t + 2, None)
    written = Rows(
        assignments=places.reshape(len(batch.labels), -1),
        intensity=[each.intensity for each in taken],
        confidence=[each.confidence for each in taken],
        account=[each.account for each in accounts] if settings.ledger else None,
        margin=[each.margin for each in taken] if settings.pair else None,
    )
    return written, [each.finite for each in taken], sums


def batch_sums(
    taken: measuring.Taken, account: measuring.Account | None, labels: jax.Array, mask: jax.Array, num_classes: int
) -> dict[str, Any]:
    """What a batch adds to the sums of one checkpoint, and of the interval that begins with it; `largest_` is kept."""
    sums = {
        "contribution": measuring.class_sums(taken.evidence, labels, mask, num_classes),
        "features": measuring.summed(taken.sums, mask),
        "largest_error": measuring.largest(taken.error, mask),
    }
    if taken.end is not None:
        sums["path_error"] = measuring.path_error(taken.end, mask)
    if account is not None:
        sums |= {"seeing": account.seeing, "weighing": account.weighing}
        sums |= {"bias": account.bias, "largest_residual": account.residual, "largest_logit": account.logit}
    return sums


def add(totals: Sums, sums: Mapping[str, Any]) -> None:
    """Adds sums to totals, in float64; of `largest_` the larger stays, and sums by class become two."""
    for name, value in sums.items():
        if isinstance(value, measuring.ClassSums):
            what, scale = name.partition(" ")[0], np.float64(value.scale)
            _add(totals, name, scale * value.total)
            _add(totals, name.replace(what, f"{what}_square"), scale**2 * value.squares)
        else:
            _add(totals, name, value)


def _add(totals, name, value):
    value = np.float64(value)
    if name not in totals:
        totals[name] = value
    elif name.startswith("largest_"):
        totals[name] = np.maximum(totals[name], value)
    else:
        totals[name] = totals[name] + value


def finish_block(directory: RunDirectory, rows: Rows, number: int, totals: Sums) -> None:
    """Has a block counted as done: its rows are on disk before the sums with it have their name."""
    for array in rows:
        if array is not None:
            array.flush()
            release(array)
    directory.barrier(f"block {number} written")
    if directory.main:
        folder = directory.partial(STEP)
        unfinished = folder / WORKING / "unfinished.npz"
        with unfinished.open("wb") as file:
            np.savez(file, **totals, **{BLOCKS: np.int64(number + 1)})
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(folder / WORKING / SUMS)


def write_sums(
    directory: RunDirectory,
    work: Run,
    settings: measuring.Measuring,
    rivals: np.ndarray,
    blanks: list[tuple[np.ndarray, np.ndarray]],
    totals: Sums,
    some: np.ndarray | None = None,
) -> None:
    """contributions.npz, prototype_features.npz and ledger.npz, from the sums of all blocks.

    Args:
      directory: of the run.
      work: the same, to read from.
      settings: what was measured.
      rivals: int `[M, R]`.
      blanks: T results of `blank_parts`.
      totals: sums over all blocks, by name.
      some: int `[W]`, the rows that the ledger is of; None for all, or no ledger.
    """
    folder = directory.partial(STEP)

    def stacked(name, count):
        return np.stack([totals[f"{name} {t}"] for t in range(count)])

    steps, labels = len(work.steps), work.dataset.labels
    counts = np.maximum(np.bincount(labels, minlength=len(work.dataset.class_names)), 1)
    samples = counts[:, None, None]
    assignments = np.load(folder / "assignments.npy", mmap_mode="r")
    mean, std = summing.moments_of(stacked("contribution", steps), stacked("contribution_square", steps), samples)
    biases, evidence = zip(*blanks, strict=True)
    np.savez(
        folder / "contributions.npz",
        mean=np.float32(mean),
        std=np.float32(std),
        bias=np.stack(biases),
        completeness_error=stacked("largest_error", steps),
        blank=np.float32(summing.blank_contributions(evidence, assignments, labels, rivals, settings.num_prototypes)),
    )
    h, w, _ = work.model.feature_shape
    locations = np.bincount(np.ravel(assignments), minlength=settings.num_prototypes)
    np.savez(
        folder / "prototype_features.npz",
        counts=locations.astype(np.int64),
        sums=np.float32(stacked("features", steps) * h * w),
    )
    if settings.ledger or some is not None:
        if some is not None:
            np.save(folder / ACCOUNTED, some)
            counts = np.maximum(np.bincount(labels[some], minlength=len(counts)), 1)
        np.savez(folder / LEDGER, **summing.ledger_members(stacked, steps, counts))


def blank_parts(checkpoints: Checkpoints, t: int) -> tuple[np.ndarray, np.ndarray]:
    """What belongs to no place `[M]`, and what each location of the blank image contributes `[h, w, M]`.

    Of one checkpoint. Computed by all processes, as everything on the device is.
    """
    model, variables = checkpoints.model, checkpoints.variables(t)
    bias = measuring.batch_bias(model, variables, checkpoints.blanks[t])
    return fetch((bias, measuring.blank_evidence(model, variables, checkpoints.blanks[t])))


def save_margins(directory: RunDirectory, work: Run, rows: Rows, settings: measuring.Measuring) -> None:
    """pair_intensity.npy: the margin's intensity over the rows of the pair, if it was measured."""
    if settings.pair:
        folder = directory.partial(STEP)
        chosen = np.flatnonzero(np.isin(work.dataset.labels, settings.pair))
        np.save(folder / "pair_intensity.npy", np.asarray(rows.margin[:, chosen]))
