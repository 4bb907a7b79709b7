"""How good prototypes are that are fitted on a sample of locations: K-means' objective over all of them.

    python experiments/benchmarks/sampled_fit.py --workdir=runs/digits --locations=64,1024,4096

For a finished run, its final model's feature vectors at all locations. PCA and K-means are fitted on the sample by hash
that a run would take (DESIGN 2.2), for some numbers of locations a prototype and some seeds, and on all. Each fit then
assigns all locations, as a run does; its objective is the sum of the squared distances of all locations to the centroid
of their prototype, all in the principal components of all locations, so that fits can be compared. What is told is how
much more that is than the mean of the fits on all, least and most over the seeds: the row of all tells how far fits
differ by their starts alone.
"""

import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax
import numpy as np
from absl import app, flags, logging

from i2x_jax import Run
from i2x_jax.config import InputError
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import prototypes
from i2x_jax.evidence.sampling import sample_locations
from i2x_jax.pipeline.prototypes import blocks, cluster, reduce_features, sampled_features

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a run whose training is finished.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "The folder of prepared data sets.")
_LOCATIONS = flags.DEFINE_list("locations", ["64", "256", "1024", "4096"], "Locations a prototype that are fitted on.")
_PROTOTYPES = flags.DEFINE_integer("prototypes", 0, "How many prototypes; 0 for those of the run.", lower_bound=0)
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many samples and starts of each.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")
flags.register_validator(
    "locations",
    lambda numbers: all(number.isdigit() and int(number) > 0 for number in numbers),
    message="allowed: whole numbers from 1, separated by commas",
)


@jax.jit
def distances(everywhere: prototypes.Pca, pca: prototypes.Pca, centroids, rows, weights):
    """Sum of the squared distances of rows `[n, d]` to their centroids, in the components `everywhere`."""
    ids = prototypes.assign(prototypes.project(pca, rows), centroids)
    # Where a centroid lies in feature space, and from there in the components of all.
    moved = prototypes.project(everywhere, pca.mean + centroids @ pca.components)
    return (weights[:, None] * (prototypes.project(everywhere, rows) - moved[ids]) ** 2).sum()


def objective(features: np.ndarray, everywhere: prototypes.Pca, pca: prototypes.Pca, centroids: np.ndarray) -> float:
    """K-means' objective over all feature vectors `[n, d]`, see above."""
    found = [distances(everywhere, pca, centroids, *block) for block in blocks(features)]
    return float(sum(np.float64(part) for part in fetch(found)))


def fitted(features: np.ndarray, wanted: int, seed: int, run: Run, count: int) -> tuple[float, prototypes.Pca, tuple]:
    """Seconds, PCA and centroids of a fit on a sample."""
    started, settings = time.perf_counter(), run.config.explain
    pca, points = reduce_features(features[sample_locations(len(features), wanted, seed)], settings.pca_dims)
    centroids = cluster(points, count, seed, settings.restarts).centroids
    return time.perf_counter() - started, pca, centroids


def measure(run: Run, count: int, numbers: list[int], seeds: int) -> dict:
    """The objectives of fits on samples and on all.

    Args:
      run: whose final model's features are taken.
      count: prototypes.
      numbers: of locations a prototype.
      seeds: how many of each.
    """
    everything = np.arange(len(run.dataset.labels) * np.prod(run.model.feature_shape[:2]))
    variables = run.variables(run.steps[-1])
    features, _ = sampled_features(run.model, variables, run.dataset, run.config.explain.batch_size, everything)
    everywhere, _ = reduce_features(features, run.config.explain.pca_dims)
    found = {"all_locations": len(features), "prototypes": count, "fits": []}
    # Those that ask for no less than there are would be the row of all again.
    for wanted in (len(features), *(number * count for number in numbers if number * count < len(features))):
        fits = [fitted(features, wanted, seed, run, count) for seed in range(seeds)]
        found["fits"].append(
            {
                "locations": wanted,
                "seconds": [seconds for seconds, *_ in fits],
                "objectives": [objective(features, everywhere, *fit) for _, *fit in fits],
            }
        )
    whole = statistics.mean(found["fits"][0]["objectives"])
    for fit in found["fits"]:
        fit["excess_percent"] = [100 * (value / whole - 1) for value in fit["objectives"]]
    return found


def table(found: dict) -> str:
    """The figures as text."""
    lines = [
        f"{found['all_locations']:,} locations, {found['prototypes']} prototypes",
        f"{'a prototype':>12} {'locations':>12} {'share %':>8} {'seconds':>8}   objective over that of all, in %: mean "
        "[least, most]",
    ]
    for fit in found["fits"]:
        every = fit["locations"] == found["all_locations"]
        excess = fit["excess_percent"]
        lines.append(
            f"{'all' if every else fit['locations'] // found['prototypes']:>12} {fit['locations']:>12,} "
            f"{100 * fit['locations'] / found['all_locations']:>8.2f} {statistics.median(fit['seconds']):>8.2f}   "
            f"{statistics.mean(excess):+.3f} [{min(excess):+.3f}, {max(excess):+.3f}]"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    del argv
    run = Run(_WORKDIR.value, _DATA_DIR.value)
    count = _PROTOTYPES.value or run.config.explain.num_prototypes
    found = measure(run, count, sorted(map(int, _LOCATIONS.value)), _SEEDS.value)
    print(table(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(main)
    except InputError as problem:
        print(f"sampled_fit.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
