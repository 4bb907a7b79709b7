"""Several refinements of one run, side by side."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from programs import contents

from i2x_jax import Run
from i2x_jax.config import InputError, from_config_dict, to_dict
from i2x_jax.pipeline import stages as pipeline
from i2x_jax.pipeline.directory import RunDirectory
from i2x_jax.pipeline.refine import curation, plan_leaving_out
from i2x_jax.results.files import files_of, read_config, refinement_names, seed_file
from i2x_jax.results.summary import best
from tests.helpers import one_line

GENTLE = {"name": "gentle", "seeds": 1, "strategies": ("full", "curated", "random"), "learning_rate": 1e-4}
# Those of another pair, or limit, are curated anew.
GENTLE |= {"pair": ("6", "7"), "max_left_out": 0.8}


def changed(workdir, **settings):
    """The config of a run with other settings of its refinement."""
    config = to_dict(read_config(workdir))
    return from_config_dict(config | {"refine": config["refine"] | settings})


@pytest.fixture(scope="module")
def both(finished, tmp_path_factory):
    """The finished run with a second refinement, and the files before."""
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("both") / "run")
    before = contents(workdir)
    pipeline.run(changed(workdir, **GENTLE), str(workdir), ["refine"], quiet=True)
    return workdir, before


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_another_refinement_leaves_the_run_as_it_was(both):
    workdir, before = both
    now = contents(workdir)
    assert now.keys() - before.keys() == {"refinements/gentle.json"}
    # The report did not tell of it.
    assert before.keys() - now.keys() == {"report.html"}
    changed_files = {name for name in now.keys() & before.keys() if now[name][0] != before[name][0]}
    assert changed_files <= {"config.json"}
    assert read_config(workdir).refine.name == ""


def test_a_training_set_that_was_taken_from_no_other_knows_what_is_left_out(finished):
    """Pictures with a validation folder of their own: nothing was held out of them, and no rows are noted."""
    runs = [Run(finished) for _ in range(2)]
    runs[1].splits = runs[1].splits._replace(train=runs[1].splits.train._replace(rows=None))
    pair, curated = curation(runs[0], runs[0].config.refine)
    plans = [plan_leaving_out(run, run.config.refine, types.SimpleNamespace(pair=pair), curated) for run in runs]
    one, other = (plan.sets(np.random.default_rng(0)) for plan in plans)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].images, other[name].images)


def test_it_records_its_settings_and_what_it_chose(both):
    workdir, _ = both
    run = Run(workdir)
    assert list(run.refinements) == ["", "gentle"]
    assert run.refinements[""] == run.refinement
    table = run.refinements["gentle"]
    assert table["settings"] == to_dict(changed(workdir, **GENTLE).refine)
    assert table["pair"] == ["6", "7"]
    assert list(table["strategies"]) == list(GENTLE["strategies"])
    rows = table["curated"]["left_out"]
    names = [run.dataset.class_names[label] for label in run.dataset.labels[rows]]
    assert table["left_out"] == {name: names.count(name) for name in ("6", "7")}
    first = run.refinement["curated"]
    assert first == {key: values.tolist() for key, values in run.arrays("curated").items() if key in first}
    assert run.refinement["settings"] == to_dict(run.config)["refine"]


def test_it_is_listed_beside_the_first(both, tmp_path):
    workdir = shutil.copytree(both[0], tmp_path / "run")
    text = Run(workdir).summary()
    pair = "/".join(Run(workdir).refinements["gentle"]["pair"])
    assert "Refinement on the test set" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("  gentle")] == [["gentle", pair]]
    pipeline.run(changed(workdir, **GENTLE), str(workdir), ["report"])
    report = (workdir / "report.html").read_text(encoding="utf-8")
    assert "Other refinements of this run" in report
    assert f"gentle ({pair}): best " in report


def test_the_best_is_told_by_its_control():
    row = {"strategy": "full", "against": "random", "accuracy": {"mean": 0.1}}
    other = row | {"strategy": "curated", "accuracy": {"mean": 0.2}}
    against_full = row | {"strategy": "hard", "against": "full", "accuracy": {"mean": 0.9}}
    assert best({"differences": [row, other, against_full]}) == ("curated", {"mean": 0.2})
    assert best({"differences": [against_full]}) is None


def test_one_name_is_for_one_set_of_settings(both, finished):
    directory = RunDirectory(both[0], refinement="gentle")
    same = changed(both[0], **GENTLE)
    directory.check_config(same)
    assert directory.complete("refine")
    assert not RunDirectory(both[0], refinement="other").complete("refine")
    for harmed, words in (
        (
            changed(both[0], **GENTLE | {"learning_rate": 1.0}),
            "refine.learning_rate: 0.0001",
        ),
        (changed(both[0], seeds=9), "refine.seeds: 2 -> 9"),
    ):
        with pytest.raises(InputError) as error:
            directory.check_config(harmed)
        assert words in one_line(error)
        assert "give this refinement another --config.refine.name" in str(error.value)


def test_a_pair_that_was_not_analysed_is_refused_with_those_that_were(workdir):
    before = contents(workdir)
    analysed = [f"{each.a},{each.b}" for each in Run(workdir).explanation.pairs if each.uncertain is not None]
    with pytest.raises(InputError) as error:
        pipeline.run(changed(workdir, name="x", pair=("0", "1")), str(workdir), ["refine"], quiet=True)
    line = one_line(error)
    assert "refine.pair is ('0', '1'), which the explanation did not analyse; allowed: " in line
    assert all(pair in line for pair in analysed)
    assert contents(workdir).keys() == before.keys()


def test_curation_anew_is_that_of_the_explain_stage(finished):
    run = Run(finished)
    own, stored = run.config.refine, run.arrays("curated")
    pair, kept = curation(run, own)
    # A limit that is hardly another has everything computed again.
    again_pair, again = curation(run, dataclasses.replace(own, max_left_out=own.max_left_out - 1e-9))
    assert pair == again_pair == tuple(stored["pair"].tolist())
    for name in ("prototypes", "left_out", "skipped"):
        np.testing.assert_array_equal(getattr(again, name), stored[name])
        np.testing.assert_array_equal(getattr(kept, name), stored[name])
    np.testing.assert_allclose(again.scores, stored["scores"], rtol=1e-5)
    most = run.explanation.pairs[0]
    names = [run.dataset.class_names[label] for label in curation(run, dataclasses.replace(own, pair=()))[0]]
    assert set(names) == {most.a, most.b}
    none = curation(run, dataclasses.replace(own, max_left_out=0.0))[1]
    assert len(none.left_out) == 0


def test_until_evidence_is_measured_the_run_takes_the_settings_that_it_is_given(workdir):
    for step in ("evidence", "mapping", "contact_sheet", "refine", "report"):
        for name in files_of(step):
            (workdir / name).unlink()
    pipeline.run(changed(workdir, pair=("4", "9")), str(workdir), ["train"], quiet=True)
    assert read_config(workdir).refine.pair == ("4", "9")


def test_files_of_a_refinement(tmp_path):
    (tmp_path / "refinements").mkdir()
    for name in (".hidden", "b", "a", "a b"):
        (tmp_path / "refinements" / f"{name}.json").write_text("{}")
    assert refinement_names(tmp_path) == ["a", "b"]
    (tmp_path / "refinement.json").write_text("{}")
    assert refinement_names(tmp_path) == ["", "a", "b"]
    directory = RunDirectory(tmp_path)
    kept = seed_file("a-seed-0", 1), seed_file("c", 0), "refinements/.a-seed-x.json"
    for name in (*kept, seed_file("", 0), seed_file("", 12), seed_file("a", 0)):
        directory.write_json(name, {})
    with directory.locked():
        left = {path.name for path in tmp_path.rglob(".*")}
    assert left == {name.rpartition("/")[2] for name in kept} | {".hidden.json"}
    assert json.loads((tmp_path / seed_file("c", 0)).read_text()) == {}
