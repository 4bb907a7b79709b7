"""What an explanation owes to the sample of locations that its prototypes are fitted on.

    python experiments/benchmarks/sampled_ledger.py --workdir=runs/digits --json=digits.json

From the checkpoints of a finished run the evidence is measured four times: with prototypes fitted on all locations, on
all with other starts of K-means, and on the sample by hash that a run takes, twice (DESIGN 2.2). Each is held against
the first, so the second says how far fits on all differ among themselves. Told are

- the adjusted Rand index of the assignments of all training locations, plain and with each location weighted by its
  evidence, the absolute contribution to its label's logit less the mean over classes: how empty background is cut up
  matters little;
- of the ledger, prototypes matched by their places (as `Run.compare` does): the relative L1 difference of what each
  added to the confidence in each class, over the whole training and by interval, on images of that class; how
  much of it belongs to prototypes whose match shares at least half of the places of both; and in how many classes the
  prototype that added most is the same;
- whether confidences are the same bit for bit, of which groups and the steps where classes are told apart are made.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import flags

from experiments.benchmarks.quiet_runs import made, start
from i2x_jax import Run
from i2x_jax.config import to_dict
from i2x_jax.data.dataset import batches
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence.measuring import batch_features, batch_tapped, blank_image
from i2x_jax.evidence.saliency import contributions
from i2x_jax.explanation.trust import adjusted_rand
from i2x_jax.results.comparison import Side, compare
from i2x_jax.results.files import CHECKPOINTS, METRICS

# What each fit is called, whether it is on all locations, and what is added to the seed of sample and starts.
FITS = {"all": (True, 0), "all, other starts": (True, 1), "sample": (False, 0), "sample, another": (False, 1)}
STEPS = ("train", "prototypes", "evidence")
HALF = 0.5

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a run whose training is finished.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The folder of prepared data sets.")
_LOCATIONS = flags.DEFINE_integer(
    "locations", 0, "Locations a prototype in the sample; 0 for as many as a run takes.", lower_bound=0
)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


@functools.partial(jax.jit, static_argnames="model")
def batch_evidence(model, variables, tapped, blank, labels):
    """Absolute contribution of each location to its label's logit less the mean over classes: `[B, h, w]`."""
    found = contributions(model, variables, tapped, blank)
    own = jax.numpy.take_along_axis(found, labels[:, None, None, None], -1)[..., 0]
    return abs(own - found.mean(-1))


def evidence_of(run: Run) -> np.ndarray:
    """`batch_evidence` of the final model at every training location: `[n]`."""
    variables, found = run.variables(run.steps[-1]), []
    empty = blank_image(run.arrays("prototypes")["blank"], run.dataset.images)
    blank = batch_features(run.model, variables, empty)
    for batch in batches(run.dataset, run.config.explain.batch_size):
        tapped = batch_tapped(run.model, variables, batch.images)
        found.append(fetch(batch_evidence(run.model, variables, tapped, blank, batch.labels)))
    return np.concatenate(found)[: len(run.dataset.labels)].ravel()


def fitted(trained: Run, max_locations: int, more: int, folder: pathlib.Path) -> Run:
    """A run up to its ledger from the checkpoints of another, with its own prototypes, on the same data.

    Args:
      trained: the run whose training is finished.
      max_locations: that K-means is fitted on, as `explain.max_locations`.
      more: is added to the seed.
      folder: a new one.
    """
    config = trained.config
    explain = dataclasses.replace(config.explain, max_locations=max_locations)
    config = dataclasses.replace(config, seed=config.seed + more, explain=explain)
    folder.mkdir()
    header = json.loads((trained.path / "config.json").read_text()) | {"config": to_dict(config)}
    (folder / "config.json").write_text(json.dumps(header))
    for name in ("labels.npy", "steps.npy", METRICS):
        shutil.copy(trained.path / name, folder / name)
    shutil.copytree(trained.path / CHECKPOINTS, folder / CHECKPOINTS)
    return made(config, folder, trained.splits, STEPS)


def entries(run: Run) -> np.ndarray:
    """What each prototype added to the mean confidence in a class, on images of that class: `[T-1, M, K]`."""
    ledger = run.arrays("ledger")
    return np.einsum("tckc->tck", np.float64(ledger["seeing"]) + ledger["weighing"])


def side_of(run: Run) -> tuple:
    """Labels, assignments and ledger of a run."""
    return run.array("labels"), run.array("assignments"), run.arrays("ledger")


def agreement(reference: Run, run: Run, weights: np.ndarray) -> dict:
    """The figures of one run beside the reference; see above."""
    places = [np.ravel(each.array("assignments")).astype(np.int64) for each in (reference, run)]
    found = {
        "rand": adjusted_rand(*places, np.ones_like(weights)),
        "rand_by_evidence": adjusted_rand(*places, weights),
    }
    sides = [Side(reference.dataset.class_names, *side_of(each)) for each in (reference, run)]
    compared = [row for row in compare(*sides) if row.other is not None]
    size = sum(abs(row.change) for row in compared)
    match = {row.prototype: row.other for row in compared}
    mine, theirs = entries(reference), entries(run)[:, :, [match[k] for k in range(len(match))]]
    found["ledger_whole"] = sum(abs(row.change - row.other_change) for row in compared) / size
    found["ledger_by_interval"] = float(np.abs(mine - theirs).sum() / np.abs(mine).sum())
    found["well_matched"] = sum(abs(row.change) for row in compared if row.overlap >= HALF) / size
    found["same_leader"] = float((mine.sum(0).argmax(-1) == theirs.sum(0).argmax(-1)).mean())
    confidences = [(each.array("confidence"), each.arrays("validation")["confidence"]) for each in (reference, run)]
    found["same_confidence"] = all(np.array_equal(*pair) for pair in zip(*confidences, strict=True))
    return found


def table(found: dict) -> str:
    """The figures as text."""
    lines = [
        f"{found['images']} images, {found['prototypes']} prototypes, {found['sampled']:,} of {found['locations']:,} "
        "locations in the sample; each beside a fit on all",
        f"{'fit':<20}{'Rand':>7}{'by evidence':>13}{'ledger: whole %':>17}{'by interval %':>15}{'well matched %':>16}"
        f"{'same leader %':>15}  same confidences",
    ]
    for name, row in found["fits"].items():
        lines.append(
            f"{name:<20}{row['rand']:>7.3f}{row['rand_by_evidence']:>13.3f}{100 * row['ledger_whole']:>17.1f}"
            f"{100 * row['ledger_by_interval']:>15.1f}{100 * row['well_matched']:>16.1f}"
            f"{100 * row['same_leader']:>15.1f}  {'yes' if row['same_confidence'] else 'no'}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    del argv
    trained = Run(_WORKDIR.value, _DATA_DIR.value)
    found = {"images": len(trained.dataset.labels), "prototypes": trained.config.explain.num_prototypes, "fits": {}}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for number, (name, (everything, more)) in enumerate(FITS.items()):
            wanted = -1 if everything else _LOCATIONS.value * found["prototypes"]
            runs[name] = fitted(trained, wanted, more, pathlib.Path(folder) / str(number))
        reference, *others = runs
        found["locations"], found["sampled"] = (
            int(runs[name].arrays("prototypes")["fitted_locations"]) for name in ("all", "sample")
        )
        weights = evidence_of(runs[reference])
        for name in others:
            found["fits"][name] = agreement(runs[reference], runs[name], weights)
    print(table(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    start(main)
