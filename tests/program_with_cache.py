"""A process whose compiled programs are kept: `python -m tests.program_with_cache FOLDER...`; 'off' keeps nothing.

For each folder in turn it forgets what it has compiled, does a training step and measures evidence, and prints a line
of JSON: how many programs JAX took from the folder, how many it wrote, and a digest of all results.
"""

import hashlib
import json
import sys

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from i2x_jax.devices.compilation import keep_programs
from i2x_jax.devices.mesh import fetch
from i2x_jax.evidence import measuring
from i2x_jax.training import loop as training
from tests.helpers import planted, tiny_model, tiny_variables


def results():
    """Everything that a training step, a batch at two checkpoints and its ledger return."""
    model, data = tiny_model(), planted(16)
    optimizer = training.make_optimizer("sgd", 0.1, 1e-4, 10, 0.1)
    state = training.init_state(tiny_variables(), optimizer)
    state = training.train_step(
        model, optimizer, "shift", state, training.zero_totals(), data.images, data.labels, jax.random.key(0)
    )
    mask, places, blank = np.ones(16, bool), np.zeros((16, 4, 4), np.int16), np.zeros((1, 4, 4, 8), np.float32)
    variables = [tiny_variables(), tiny_variables(1)]
    found = [
        measuring.take(
            model,
            measuring.Measuring(3),
            held,
            measuring.batch_tapped(model, held, data.images),
            data.labels,
            places,
            blank,
        )
        for held in variables
    ]
    ends = [each.end for each in found]
    account = measuring.account(model, measuring.Between(variables, [blank, blank], ends), places, data.labels, mask)
    return fetch((state, found, account))


def main():
    counts = dict.fromkeys(("/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"), 0)

    def count(event, **_):
        if event in counts:
            counts[event] += 1

    jax.monitoring.register_event_listener(count)
    for folder in sys.argv[1:]:
        counts.update(dict.fromkeys(counts, 0))
        jax.config.update("jax_enable_compilation_cache", True)
        reset_cache()
        keep_programs(folder)
        jax.clear_caches()
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(results()):
            digest.update(np.asarray(leaf).tobytes())
        taken, written = counts.values()
        print(json.dumps({"taken": taken, "written": written, "digest": digest.hexdigest()}), flush=True)


if __name__ == "__main__":
    main()
