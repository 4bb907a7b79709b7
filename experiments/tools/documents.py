"""Puts what was measured into README.md, docs/reading.md and experiments/benchmarks/benchmark.md, from finished runs.

    python experiments/tools/documents.py --run=runs/digits --run=runs/mnist_cnn --benchmark=mnist.json
    python experiments/tools/documents.py --run=runs/digits --check

What is measured stands between markers, `<!-- NAME: begin -->` and `<!-- NAME: end -->`, and nowhere else:

  digits, in reading.md        the summary of the digits run, as run.py prints it; its contact sheet goes to docs/
  experiments, in README.md    a row for each run: accuracy, time, memory
  speed, in README.md          a row for each file that `experiments/benchmarks/benchmark.py --json` wrote
  benchmarks, in benchmark.md  what that program printed, one section for each file

A run is named by its experiment, or by its folder where the settings are no experiment's; a benchmark by its file. Rows
and sections of the same name are replaced, others stay. --check writes nothing; what differs is named on stderr, and
the exit code is then 2.
"""

import io
import json
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Mapping

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from absl import app, flags
from PIL import Image

from experiments.benchmarks import benchmark_tables
from i2x_jax.config import Config, InputError, from_config_dict
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import CONTACT_SHEET, STEPS, read_header
from i2x_jax.results.opened_run import Run

ROOT = pathlib.Path(__file__).resolve().parents[2]
README, READING, BENCHMARK = "README.md", "docs/reading.md", "experiments/benchmarks/benchmark.md"
PICTURE = "docs/digits_contact_sheet.png"
EXPERIMENTS_HEAD = (
    "| experiment | images analysed | checkpoints | prototypes | test accuracy | train | explain | whole run "
    "| peak memory | on |"
)
SPEED_STAGES = {
    "explain": "explain, as a whole",
    "forward": "forward",
    "saliency_intensity": "saliency, intensity",
    "pca": "PCA",
    "kmeans": "K-means",
    "assign": "assignment",
    "grouping": "grouping",
    "mapping": "mapping",
    "train_step": "training step",
}
SPEED_HEAD = f"| benchmark | images | {' | '.join(SPEED_STAGES.values())} | peak memory: ours, baseline | measured |"
# Grey images with coloured frames: more shades would only make the file larger.
PICTURE_COLOURS = 64
# What an experiment has, among the programs in its folder.
SETTINGS = re.compile(r"^ +config = ConfigDict\(\)$", re.MULTILINE)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)

_RUN = flags.DEFINE_multi_string("run", [], "A finished run; may be given several times.")
_BENCHMARK = flags.DEFINE_multi_string(
    "benchmark", [], "A file of experiments/benchmarks/benchmark.py; may be given several times."
)
_CHECK = flags.DEFINE_bool("check", False, "Write nothing, and say what differs.")


def experiment_of(config: Config) -> str | None:
    """The name of the file in experiments/ whose settings these are, if there is one."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        if SETTINGS.search(path.read_text()) and from_config_dict(runpy.run_path(path)["get_config"]()) == config:
            return path.stem
    return None


def open_run(workdir: str) -> tuple[str, Run]:
    """A finished run and its name; raises `InputError` for one that is not finished."""
    run, directory = Run(workdir), RunDirectory(workdir)
    missing = [step for step in STEPS if not directory.complete(step)]
    if missing:
        raise InputError(f"{run.path} is not finished ({missing[0]}); allowed: finished runs; run it to its end first")
    return experiment_of(run.config) or run.path.name, run


def open_benchmark(path: str) -> tuple[str, dict]:
    """What benchmark.py found and the name of its file; raises `InputError` for any other file."""
    allowed = "allowed: a file that experiments/benchmarks/benchmark.py --json wrote; check --benchmark"
    try:
        report = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {allowed}") from None
    if not isinstance(report, dict) or not {"machine", "sides"} < set(report) or not {"stages", "growth"} & set(report):
        raise InputError(f"{path} holds no benchmark; {allowed}")
    return pathlib.Path(path).stem, report


def inside(text: str, name: str) -> str:
    """What stands between the markers `name` of a document; raises `InputError` where they are not there once."""
    return _parts(text, name)[1]


def replaced(text: str, name: str, content: str) -> str:
    """The document with `content` between the markers `name`; raises `InputError` where they are not there once."""
    before, _, after = _parts(text, name)
    return f"{before}\n{content}\n{after}"


def _parts(text, name):
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.fullmatch(f"(.*{begin})\n(.*)\n({end}.*)", text, re.DOTALL)
    if not found or text.count(begin) != 1 or text.count(end) != 1:
        raise InputError(f"a document has no block {name!r}; allowed: {begin} and {end}, once each; put them back")
    return found.groups()


def merged_table(old: str, head: str, rows: Mapping[str, str]) -> str:
    """A Markdown table: the rows of an old one (anything else is dropped), with `rows` put in by their first cell."""
    lines = [line for line in old.splitlines() if line.startswith("| ")]
    # The first is the head; a row begins with its name.
    known = {line.split("|")[1].strip(): line for line in lines[1:]}
    columns = head.count("|") - 1
    rule = "|---" + "|---:" * (columns - 1) + "|"
    return "\n".join([head, rule, *(known | rows).values()])


def merged_sections(old: str, sections: Mapping[str, str]) -> str:
    """Sections under `## NAME`: those of an old text (anything before them is dropped), with `sections` put in."""
    _, *parts = HEADING.split(old)
    known = {name: body.strip("\n") for name, body in zip(parts[::2], parts[1::2], strict=True)}
    return "\n\n".join(f"## {name}\n\n{body}" for name, body in (known | sections).items())


def digits_summary(run: Run) -> str:
    """What run.py prints at the end, but for where the files are, which is another folder for everybody."""
    text, _, _ = run.summary().rpartition("\n\n")
    return f"```\n{text}\n```"


def picture(run: Run) -> bytes:
    """The contact sheet of a run as a small PNG."""
    with Image.open(run.path / CONTACT_SHEET) as sheet:
        buffer = io.BytesIO()
        sheet.convert("RGB").quantize(PICTURE_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def experiment_row(name: str, run: Run) -> str:
    """A row of the table of experiments; times are those of the process that wrote, over all attempts."""
    header = read_header(run.path)
    seconds = {stage: 0.0 for stage, _ in STEPS.values()}
    for step, taken in header["timing"].items():
        seconds[STEPS[step][0]] += taken
    peak = max(header.get("peak_memory", {}).values(), default=None)
    test = [line["accuracy"] for line in run.metrics if line["split"] == "test"][-1]
    provenance = header["provenance"]
    devices = len(provenance["devices"])
    cells = [
        name,
        f"{len(run.array('labels')):,}",
        len(run.steps),
        run.config.explain.num_prototypes,
        f"{100 * test:.2f} %",
        _duration(seconds["train"]),
        _duration(seconds["explain"]),
        _duration(sum(seconds.values())),
        "not recorded" if peak is None else f"{peak / 1e9:.2f} GB",
        f"{provenance['platform']}{f', {devices} devices' if devices > 1 else ''}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def speed_row(name: str, report: dict) -> str:
    """A row of the table of speed: how many times as fast as the baseline, medians of the warm runs."""
    machine, memory = report["machine"], report["memory"]["explain"]
    ratios = [report["stages"][stage]["ratio"] for stage in SPEED_STAGES]
    cells = [
        name,
        f"{report['sides']['ours']['images']:,}",
        *(f"{ratio:.2f}" for ratio in ratios),
        f"{memory['ours'] / 1e9:.2f} GB, {memory['baseline'] / 1e9:.2f} GB",
        f"{machine['date'][:10]}, {(machine['revision'] or 'unknown')[:7]}, {machine['processor']}, "
        f"{machine['cores']} cores",
    ]
    return f"| {' | '.join(cells)} |"


def benchmark_section(report: dict) -> str:
    """What experiments/benchmarks/benchmark.py printed, and its command."""
    table = benchmark_tables.stages if "stages" in report else benchmark_tables.growth
    return f"`python {report['machine']['command']}`\n\n```\n{table(report)}\n```"


def documents(root: pathlib.Path, runs: Mapping[str, Run], benchmarks: Mapping[str, dict]) -> dict[str, bytes]:
    """The documents as they ought to be.

    Args:
      root: where they are.
      runs: finished runs by name.
      benchmarks: what experiments/benchmarks/benchmark.py found, by name.

    Returns:
      Content by path under `root`.

    Raises:
      InputError: a document has not the markers that it should.
    """
    readme, reading, benchmark = ((root / name).read_text(encoding="utf-8") for name in (README, READING, BENCHMARK))
    made = {}
    if "digits" in runs:
        reading = replaced(reading, "digits", digits_summary(runs["digits"]))
        made[PICTURE] = picture(runs["digits"])
    if runs:
        rows = {name: experiment_row(name, run) for name, run in runs.items()}
        readme = replaced(readme, "experiments", merged_table(inside(readme, "experiments"), EXPERIMENTS_HEAD, rows))
    staged = {name: report for name, report in benchmarks.items() if "stages" in report}
    if staged:
        rows = {name: speed_row(name, report) for name, report in staged.items()}
        readme = replaced(readme, "speed", merged_table(inside(readme, "speed"), SPEED_HEAD, rows))
    if benchmarks:
        sections = {name: benchmark_section(report) for name, report in benchmarks.items()}
        benchmark = replaced(benchmark, "benchmarks", merged_sections(inside(benchmark, "benchmarks"), sections))
    return made | {README: readme.encode(), READING: reading.encode(), BENCHMARK: benchmark.encode()}


def main(argv: list[str]) -> None:
    """Writes the documents, or raises `InputError` if they differ and are only to be checked."""
    if argv[1:]:
        raise InputError(f"unexpected argument {argv[1]!r}; allowed: flags only; see --help")
    if not _RUN.value and not _BENCHMARK.value:
        raise InputError("nothing to put into the documents; allowed: --run and --benchmark; see --help")
    runs, benchmarks = dict(map(open_run, _RUN.value)), dict(map(open_benchmark, _BENCHMARK.value))
    made = documents(ROOT, runs, benchmarks)
    changed = [name for name, content in made.items() if (ROOT / name).read_bytes() != content]
    if _CHECK.value and changed:
        raise InputError(f"{', '.join(changed)} differ from what was measured; allowed: equal; run without --check")
    for name in changed:
        (ROOT / f"{name}.tmp").write_bytes(made[name])
        os.replace(ROOT / f"{name}.tmp", ROOT / name)
    print(f"changed: {', '.join(changed)}" if changed else "all as measured")


def _duration(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    try:
        app.run(main)
    except InputError as problem:
        print(f"documents.py: error: {problem}", file=sys.stderr)
        sys.exit(2)
