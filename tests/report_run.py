"""A small run on digits with hostile class names, made once in this process for the tests of report and browser."""

import functools
import pathlib

import pytest

from i2x_jax import Run
from i2x_jax.config import from_config_dict
from i2x_jax.data import sources
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.results.files import STAGES
from tests.programs import one_at_a_time

SCRIPT = "<script>alert(1)</script>"
# Markup, a name with what separates names in a link, and control characters with one that turns text round.
HYPHENS, CONTROL = "a-b & 'c'", "bell\x07 \u202eright\u2028 100 %"
NAMES = (SCRIPT, "1", "2", "3", "4", "5", HYPHENS, CONTROL, "8", "9")
# As in experiments/tools/kill_and_resume.py: small, but prototypes waver and samples are left out.
CONFIG = {
    "train": {"epochs": 8, "learning_rate": 0.02, "batch_size": 32, "num_checkpoints": 8, "resume_every": 30}
    | {"weight_decay": 1e-4},
    "data": {"max_train": 400, "augment": "none", "validation": 0.1},
    "model": {"width": 4},
    "explain": {"num_prototypes": 8, "pca_dims": 4, "restarts": 1, "max_pairs": 1},
    "refine": {
        "pair": (HYPHENS, CONTROL),
        "seeds": 2,
        "max_left_out": 0.9,
        "learning_rate": 3e-4,
        "strategies": ("full", "curated", "random", "full>full", "curated>full", "random>full"),
    },
}


def run_stages(workdir: pathlib.Path, *stages: str) -> Run:
    """Runs stages (all by default) on digits whose classes have other names; the run holds its data."""
    digits = sources.EMBEDDED["digits"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.EMBEDDED, "digits", lambda: (*digits()[:2], NAMES))
        pipeline.run(from_config_dict(CONFIG), str(workdir), stages or STAGES)
        run = Run(workdir)
        assert run.dataset.class_names == NAMES
    return run


@functools.cache
def report_run(base: pathlib.Path) -> Run:
    """The finished run below a folder; every module that asks with the same folder shares it, in whatever process."""
    with one_at_a_time(base, "report_run"):
        return run_stages(base / "report_run")
