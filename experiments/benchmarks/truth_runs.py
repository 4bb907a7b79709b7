"""What a run can say of itself, on runs without a plant, and beside them an untrained network (`truth.py`).

The instruments are those of `--stage=trust` (DESIGN 2.14), the runs the twins of `truth_cues`. The untrained network
is drawn anew; its places are assigned by the run's prototypes, as those of randomised layers are.
"""

import pathlib

import jax

from experiments.benchmarks import truth_cues as cues
from i2x_jax.config import Config
from i2x_jax.data.dataset import Splits
from i2x_jax.pipeline import trust

# Added to the seed of the run, for weights that it has never had.
ANOTHER = 1000


def measure(config: Config, splits: Splits, folder: pathlib.Path) -> dict:
    """The figures of one run."""
    run = cues.made(config, splits, folder)
    variables = run.variables(run.steps[-1])
    dataset = trust.looked_at(run.splits.validation, trust.IMAGES)
    seen = trust.look(run, variables, dataset)
    untrained = trust.look(run, run.model.init(jax.random.key(config.seed + ANOTHER)), dataset, seen.kept)
    alike = {
        "contributions": zip(seen.owed[..., 0], untrained.owed[..., 0], strict=True),
        "maps": zip(seen.maps, untrained.maps, strict=True),
    }
    return {
        "accuracy": cues.final_accuracy(run)["test"],
        "images": len(dataset.labels),
        "deletion": trust.deletion_figures(run, variables, dataset, seen, lambda count: None),
        "randomisation": trust.randomisation_figures(run, variables, dataset, seen, lambda count: None),
        "untrained": {name: trust.likeness(pairs, config.seed) for name, pairs in alike.items()},
        "stability": trust.stability_figures(run, variables, lambda count: None),
    }
