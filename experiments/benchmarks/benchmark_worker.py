"""One implementation in a process of its own, and the `Side` that drives it through a pipe.

A call is a line of JSON: {"call": name of a method, "inputs": {argument: value or path of a .npy file}, "load":
checkpoint or null, "cool": whether compiled programs are forgotten before, "save": where arrays of the result go, or
null}. The answer is a line too: {"seconds", "result": {name: value or path}, "peak": bytes}, or {"error": a traceback}.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
import traceback

import numpy as np

from experiments.benchmarks.benchmark_problem import problem_of
from i2x_jax.devices.host_memory import keep_freed_memory

# Of addresses, in bytes: what XLA asks for on a CPU.
ALIGNMENT = 64

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Side:
    """One implementation's process."""

    def __init__(self, name: str, arguments: list[str], log: pathlib.Path):
        self.name, self.log, self.peak = name, log, 0
        command = [sys.executable, "-m", "experiments.benchmarks.benchmark_worker", name, *arguments]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            )

    def call(self, name: str, load: int | None = None, cool: bool = False, save: str | None = None, **inputs) -> dict:
        """Calls a method of the implementation: its answer, as above.

        Raises:
          RuntimeError: it failed there; with its traceback.
        """
        try:
            line = {"call": name, "inputs": inputs, "load": load, "cool": cool, "save": save}
            print(json.dumps(line), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline() or "{}")
        except BrokenPipeError:
            answer = {}
        if "result" not in answer:
            told = answer.get("error") or f"the process ended ({self.process.wait()}); {self.log.read_text()[-2000:]}"
            raise RuntimeError(f"{self.name}: {name}: {told}")
        self.peak = answer["peak"]
        return answer

    def close(self) -> None:
        """Ends the process."""
        # What it was told last may never have been read, if it ended by itself.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Worker:
    """An implementation and the arrays it was last given."""

    def __init__(self, side: str, workdir: str, data_dir: str | None, num_images: int, weights: str, batch_size: int):
        # Only one of the two frameworks enters a process.
        if side == "ours":
            from experiments.benchmarks.benchmark_ours import Implementation
        else:
            from experiments.benchmarks.torch_baseline import Implementation
        self.make, self.made, self.batch_size = Implementation, None, batch_size
        self.problem = problem_of(workdir, data_dir, num_images, weights)
        self.arrays = {}

    def answer(self, call: dict) -> dict:
        """Carries out one call."""
        if self.made is None:
            self.made = self.make(self.problem, self.batch_size)
        if call["call"] == "describe":
            sizes = {"images": len(self.problem.labels), "image_shape": self.problem.images.shape[1:]}
            return self.done(0.0, {**self.made.facts(), **sizes}, None)
        if call["call"] == "resize":
            self.made.use(self.problem.resized(**call["inputs"]))
            return self.done(0.0, {}, None)
        inputs = self.read(call["inputs"])
        if call["load"] is not None:
            self.made.load(call["load"])
        if call["cool"]:
            self.made.cool()
        started = time.perf_counter()
        result = getattr(self.made, call["call"])(**inputs)
        return self.done(time.perf_counter() - started, result, call["save"])

    def read(self, inputs: dict) -> dict:
        """The arguments; arrays that the call before had too are at hand."""
        paths = {value for value in inputs.values() if isinstance(value, str) and value.endswith(".npy")}
        self.arrays = {path: self.arrays.get(path) for path in paths}
        for path in paths:
            if self.arrays[path] is None:
                self.arrays[path] = aligned(np.load(path, mmap_mode="r"))
        return {name: self.arrays.get(value, value) if value in paths else value for name, value in inputs.items()}

    def done(self, seconds: float, result: dict, save: str | None) -> dict:
        """The answer; arrays go to files where they are wanted and are left out where not."""
        told = {}
        for name, value in result.items():
            if not isinstance(value, np.ndarray):
                told[name] = value.item() if isinstance(value, np.generic) else value
            elif save:
                told[name] = f"{save}-{name}.npy"
                np.save(told[name], value)
        return {"seconds": seconds, "result": told, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins where JAX on a CPU takes an array as it is, as NumPy and PyTorch do anywhere."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def main() -> None:
    """Answers until the standard input ends."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side, workdir, data_dir, num_images, weights, batch_size = sys.argv[1:]
    if side == "ours":
        keep_freed_memory()
    pathlib.Path(weights).mkdir(exist_ok=True)
    worker = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(side, workdir, data_dir or None, int(num_images), weights, int(batch_size))
            answer = worker.answer(json.loads(line))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
