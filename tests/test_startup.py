"""What starting costs, told by what is imported: times would depend on the machine."""

import subprocess
import sys

from test_run import ROOT

SLOW = ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "scipy", "sklearn", "pandas", "altair", "jinja2")


def test_help_imports_nothing_that_is_slow():
    command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "--compilation_cache" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"i2x_jax.config", "numpy"} <= imported
    assert not imported & set(SLOW)
