"""Memory stays flat: over batches on host and device, and however many images there are (experiments/memory.py)."""

import gc
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc
from typing import NamedTuple

import jax
import numpy as np
import pytest
from test_run import ROOT

from i2x_jax import evidence, training
from tests.helpers import planted, tiny_model, tiny_variables

BATCHES, BATCH_SIZE = 200, 256
# What the C library keeps comes and goes by megabytes; what Python and NumPy hold is counted to the byte. The images of
# every batch, if kept, would be 3.3 MB, its feature maps 26 MB.
RESIDENT, TRACED = 8e6, 1e5


@pytest.fixture(autouse=True)
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Held(NamedTuple):
    resident: int  # bytes of the process
    traced: int  # bytes that Python and NumPy allocated
    device: tuple[int, int]  # arrays and their bytes


def held():
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    arrays = jax.live_arrays()
    return Held(
        pages * os.sysconf("SC_PAGESIZE"),
        tracemalloc.get_traced_memory()[0],
        (len(arrays), sum(array.nbytes for array in arrays)),
    )


def assert_flat(before, after):
    assert after.device == before.device
    assert after.traced - before.traced < TRACED
    assert after.resident - before.resident < RESIDENT


def test_evidence_of_many_batches():
    data = planted(BATCHES * BATCH_SIZE)
    places = np.random.default_rng(0).integers(0, 3, (len(data.labels), 4, 4)).astype(np.int16)
    intensity, confidence = np.zeros((2, len(places), 3), np.float32)
    marks = []

    def note(_):
        marks.append(held() if len(marks) in (BATCHES, 2 * BATCHES - 2) else None)

    # The first 200 warm up: what is taken once is taken by then. Looked at while a batch is at work, not at the end.
    for _ in range(2):
        evidence.measure_checkpoint(
            tiny_model(),
            tiny_variables(),
            data,
            places,
            3,
            "gradcam",
            "label",
            BATCH_SIZE,
            intensity,
            confidence,
            note,
        )
    assert_flat(marks[BATCHES], marks[-2])


def test_many_training_steps():
    model, data = tiny_model(), planted(BATCH_SIZE)
    optimizer = training.make_optimizer("sgd", 0.1, 1e-4, 2 * BATCHES, 0.1)
    state = training.init_state(tiny_variables(), optimizer), training.zero_totals()

    def steps(state, start, stop):
        state = training.run_steps(model, optimizer, "shift", *state, data, BATCH_SIZE, 0, start, stop)
        jax.block_until_ready(state)
        return state, held()

    state, before = steps(state, 0, BATCHES)
    state, after = steps(state, BATCHES, 2 * BATCHES)
    assert_flat(before, after)


@pytest.mark.slow
def test_features_are_never_held_all_at_once():
    """As experiments/memory.py shows it with 40 GB of features: here they are 1.6 GB at each checkpoint."""
    command = [sys.executable, "experiments/memory.py", "--images=8000", "--channels=1024"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    peaks = dict(re.findall(r"^(\w+) +([\d,]+) MB", done.stdout, re.MULTILINE))
    peak = {name: int(value.replace(",", "")) for name, value in peaks.items()}
    assert peak["intensities"] - peak["start"] < 1606 / 2
    assert float(re.search(r"Rand index .*: ([\d.]+)", done.stdout)[1]) > 0.99
