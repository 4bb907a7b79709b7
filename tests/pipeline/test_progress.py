"""What run.py says while it works: bars on a terminal, a line for each step elsewhere, nothing if so asked."""

import io
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from programs import command, environment, run

from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.results.files import STAGES, STEPS, read_config, read_header
from i2x_jax.results.opened_run import Run

# Everything that takes long, and how many there are of what in the run of the tests.
BARS = {
    "training": "3.33k image",
    "features": "394 image",
    "clustering, at most": "1.27M location",
    "held-out images": "4528 image",
    "evidence": "394 image",
    "leaving out": "211 image",
    "grouping": "7 interval",
    "mapping": "7 interval",
    "refining, seed 2 of 2": "9.15k image",
    "report": "14 part",
}
# A count, the time taken and the time left, and a rate: "  8%|█ | 256/3152 [00:11<02:07, 22.64 image/s]".
BAR = re.compile(
    r"\r(?P<label>[^\r|]+): +\d+%\|[^\r|]*\| (?P<at>\S+)/(?P<total>\S+) \[\S+<(?P<left>\S+), (?P<rate>[^\]]+)\]"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def bars(shown):
    found = {}
    for match in BAR.finditer(shown):
        found.setdefault(match["label"], []).append(match)
    return found


def test_whatever_takes_long_has_a_bar_with_count_rate_and_time_left(shown):
    found = bars(shown)
    for label, expected in BARS.items():
        total, unit = expected.split()
        assert {match["total"] for match in found[label]} <= {total, "3328", "9152"}, label
        assert all(re.search(rf"(/s| {unit})", match["rate"]) and unit in match["rate"] for match in found[label])
    # A bar that is drawn when it begins and then never again would pass until here.
    moved = [match for match in found["training"] if match["at"] not in ("0", "0.00")]
    assert moved
    assert all(re.fullmatch(r"[\d.]+k? ?(image/s|s/ image)", match["rate"].strip()) for match in moved)
    assert all(re.fullmatch(r"[\d:]+", match["left"]) for match in moved)


def test_the_terminal_keeps_the_lines_and_not_the_bars(shown, finished):
    # What a terminal shows in the end: of each line what follows its last return, unless it was wiped.
    lines = [line.rsplit("\r", 1)[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    assert lines[0] == f"The report will be {finished / 'report.html'}"
    assert [line.split(":")[0] for line in lines[1 : 1 + len(STEPS)]] == [
        f"[{number}/{len(STEPS)}] {step}" for number, step in enumerate(STEPS, 1)
    ]
    assert "\n".join(lines[len(STEPS) + 2 :]).rstrip() == Run(finished).summary()


def test_elsewhere_there_is_a_line_for_each_step_and_no_bar(base, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    (workdir / "contact_sheet.png").unlink()
    # `run` asserts that nothing is written on stderr.
    lines = run(base, workdir).splitlines()
    assert lines[0] == f"The report will be {workdir / 'report.html'}"
    for number, (step, line) in enumerate(zip(STEPS, lines[1:], strict=False), 1):
        ended = r"done in \d+\.\d s" if step == "contact_sheet" else "already done"
        assert re.fullmatch(rf"\[{number}/{len(STEPS)}\] {step}: {ended}", line)
    assert "\n".join(lines[len(STEPS) + 2 :]) == Run(workdir).summary()


def test_a_run_without_a_report_says_where_its_files_are(finished, capsys):
    pipeline.run(read_config(finished), str(finished), ["train"])
    assert capsys.readouterr().out == f"The run directory is {finished}\n[1/1] train: already done\n"


def test_verbosity_below_info_leaves_the_summary(base, finished):
    assert run(base, finished, "--verbosity=-1") == f"{Run(finished).summary()}\n"


def test_verbosity_from_info_on_says_all(base, finished):
    nothing = f"Nothing to do: {', '.join(STAGES)} already done.\n\n"
    assert run(base, finished, "--verbosity=0") == f"{nothing}{Run(finished).summary()}\n"


def test_quiet_work_says_nothing_and_has_no_bar(finished, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in STEPS["mapping"][1]:
        (workdir / name).unlink()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    pipeline.run(read_config(workdir), str(workdir), ["explain"], quiet=True)
    assert (capsys.readouterr().out, terminal.getvalue()) == ("", "")
    assert (workdir / "groups.npy").exists()


@pytest.mark.parametrize(("main", "quiet"), [(True, False), (True, True), (False, False)])
def test_one_process_speaks_unless_it_is_to_be_quiet(tmp_path, main, quiet, monkeypatch, capsys):
    directory = RunDirectory(tmp_path, main)
    directory.quiet = quiet
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    directory.say("a line")
    with directory.progress_bar("label", 3, "image") as bar:
        bar.update(2)
        bar.refresh()
    speaks = main and not quiet
    assert capsys.readouterr().out == ("a line\n" if speaks else "")
    assert ("label:  67%" in terminal.getvalue()) == speaks


def test_what_steps_took_is_recorded(finished):
    header = read_header(finished)
    assert list(header["timing"]) == list(header["peak_memory"]) == list(STEPS)
    assert min(header["timing"].values()) > 0
    # The most that was held so far: an interpreter with JAX at least, and it never falls.
    peaks = list(header["peak_memory"].values())
    assert 1e8 < peaks[0] < 1e11
    assert (np.diff(peaks) >= 0).all()


def test_stopped_by_the_user_it_says_so_in_a_line(base, tmp_path):
    workdir = tmp_path / "run"
    # Tests started in the background ignore the signal, and what they start would too; a handler is not inherited.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started = subprocess.Popen(command(workdir), env=environment(base), stdout=-1, stderr=-1, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)
    with started as process:
        assert process.stdout.readline().startswith("The report will be")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "run.py: stopped; the same command goes on\n")
    assert not (workdir / "report.html").exists()
