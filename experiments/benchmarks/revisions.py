r"""What `run.py --stage=explain` costs before and after: two revisions of this repository, in turns.

    python experiments/benchmarks/revisions.py --before=7fdd92a --json=revisions.json
    python experiments/benchmarks/revisions.py --before=7fdd92a -- --config=experiments/mnist_cnn.py \
        --config.data.max_train=10000

The tree of each revision is put into a temporary folder (what is not committed is not measured). Each trains once, with
the same settings and seed, which follow after `--`; then copies of the two trainings are explained in turns, after a
round that is not counted, in which programs are compiled and kept. Of each child: seconds on the clock, seconds of CPU
in user mode, and the most resident memory (`ru_maxrss`; this program imports nothing large, because a child's counts
from that of its parent on). A ratio is that of the medians, after over before; beside it the least and the most of the
ratios within a round. On a machine that does other work the seconds on the clock say little.

Settings in which the two trainings differ, because a default has changed, are listed.
"""

import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDES = ("before", "after")
# Name, unit, and what a child's figure is divided by.
FIGURES = {"wall": ("s on the clock", 1), "user": ("s of CPU, user", 1), "peak": ("MB at the peak", 1e6)}
KIBIBYTE = 1024

_BEFORE = flags.DEFINE_string("before", None, "The one revision.", required=True)
_AFTER = flags.DEFINE_string("after", "HEAD", "The other.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds that are counted.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "The file that the figures are written to.")


class UnusableError(Exception):
    """Something given cannot be used, or a run of a revision failed; one line."""


def commit_of(revision: str) -> str:
    """The full name of a revision of this repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnusableError(f"{revision!r} is no revision of {ROOT}; allowed: what `git rev-parse` knows; see git log")
    return done.stdout.strip()


def unpack(commit: str, folder: pathlib.Path) -> None:
    """Puts the tree of a commit into a new folder."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def ran(tree: pathlib.Path, arguments: list[str]) -> dict[str, float]:
    """Runs run.py of a tree to its end: seconds on the clock and of CPU, and bytes of memory."""
    # Each revision keeps its own compiled programs.
    environment = os.environ | {"XDG_CACHE_HOME": str(tree.with_name(f"{tree.name}-cache"))}
    command = [sys.executable, str(tree / "run.py"), *arguments]
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            lines = said.read().splitlines() or ["it said nothing"]
            raise UnusableError(f"{' '.join(command)} ended with exit code {process.returncode} ({lines[-1]})")
    return {"wall": wall, "user": used.ru_utime, "peak": used.ru_maxrss * KIBIBYTE}


def settings_of(workdir: pathlib.Path) -> dict[str, object]:
    """The settings of a run by their full names."""
    groups = json.loads((workdir / "config.json").read_text())["config"]
    flat = {}
    for name, value in groups.items():
        flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def measure(folder: pathlib.Path, commits: dict[str, str], settings: list[str], repeats: int) -> dict:
    """Trains and explains both revisions.

    Args:
      folder: an empty one.
      commits: of each side.
      settings: arguments of run.py.
      repeats: rounds that are counted.
    """
    found = {"commits": commits, "settings": settings, "cores": len(os.sched_getaffinity(0)), "rounds": []}
    for side, commit in commits.items():
        unpack(commit, folder / side)
        ran(folder / side, [f"--workdir={folder / f'{side}-trained'}", "--stage=train", *settings])
    before, after = (settings_of(folder / f"{side}-trained") for side in SIDES)
    found["differing"] = {
        name: [before.get(name), after.get(name)]
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }
    found["load"] = [os.getloadavg()[0]]
    for _ in range(1 + repeats):
        figures = {}
        for side in SIDES:
            workdir = folder / f"{side}-run"
            shutil.copytree(folder / f"{side}-trained", workdir)
            figures[side] = ran(folder / side, [f"--workdir={workdir}", "--stage=explain", *settings])
            shutil.rmtree(workdir)
        found["rounds"].append(figures)
        found["load"].append(os.getloadavg()[0])
    del found["rounds"][0]
    return found


def summary(rounds: list[dict]) -> dict:
    """Medians of each side by figure, and their ratio with its least and most within a round."""
    found = {}
    for name in FIGURES:
        medians = {side: statistics.median(each[side][name] for each in rounds) for side in SIDES}
        ratios = [each["after"][name] / each["before"][name] for each in rounds]
        found[name] = medians | {"ratio": medians["after"] / medians["before"], "spread": [min(ratios), max(ratios)]}
    return found


def table(found: dict) -> str:
    """The figures as text."""
    lines = [f"{side:<6} {commit}" for side, commit in found["commits"].items()]
    lines.append(f"run.py --stage=explain {' '.join(found['settings'])}".rstrip())
    lines += [f"differs: {name} {old!r} -> {new!r}" for name, (old, new) in found["differing"].items()]
    lines.append(
        f"{len(found['rounds'])} rounds in turns, {found['cores']} cores, load {min(found['load']):.1f} to "
        f"{max(found['load']):.1f}"
    )
    lines.append(f"{'median':<16}{'before':>10}{'after':>10}{'ratio':>8}   [least, most]")
    for name, (title, unit) in FIGURES.items():
        row = found["summary"][name]
        least, most = row["spread"]
        lines.append(
            f"{title:<16}{row['before'] / unit:>10.1f}{row['after'] / unit:>10.1f}{row['ratio']:>8.2f}   "
            f"[{least:.2f}, {most:.2f}]"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    settings = argv[1:]
    if taken := [each for each in settings if each.split("=")[0].lstrip("-") in ("workdir", "stage")]:
        raise UnusableError(f"{taken[0]} has no meaning here; allowed after --: settings of run.py; leave it out")
    commits = {"before": commit_of(_BEFORE.value), "after": commit_of(_AFTER.value)}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(pathlib.Path(folder), commits, settings, _REPEATS.value)
    found["summary"] = summary(found["rounds"])
    print(table(found))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        app.run(main)
    except UnusableError as problem:
        print(f"revisions.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
