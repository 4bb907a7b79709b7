"""How far to trust a run: ideal where the truth is built in, in files, summary and report, and what is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_line
from own_networks import CHECKPOINTS, PLAIN, SETTINGS, STEPS
from programs import run as run_program
from programs import steps_printed

import i2x_jax
from i2x_jax import InputError, OwnModel, Run
from i2x_jax.data.dataset import Dataset
from i2x_jax.evidence.deletion import FILLS
from i2x_jax.results import findings, summary

CELL, CELLS = 4, 4


CHECKED = [{"scale": np.ones(3, np.float32) / 255, "weights": size * np.eye(3, dtype=np.float32)} for size in (5, 30)]


def mosaic(count, seed):
    """Images of 4x4 coloured cells; the class is the colour of which there is most."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (count, CELLS, CELLS, 3))
    labels = cells.sum((1, 2)).argmax(-1).astype(np.int32)
    return Dataset(cells.repeat(CELL, 1).repeat(CELL, 2).astype(np.uint8), labels, ("red", "green", "blue"))


def cell_means(variables, images):
    # Times the scale, which an image meets first.
    levels = images.astype(jnp.float32) * variables["scale"]
    return levels.reshape(-1, CELLS, CELL, CELLS, CELL, 3).mean((2, 4))


def most(variables, features):
    return features.mean((1, 2)) @ variables["weights"]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A network whose logits are sums over cells: without a cell's pixels a logit falls by that cell's contribution."""
    settings = {"seed": 0, "explain": {"num_prototypes": 8, "pca_dims": 3, "restarts": 2, "batch_size": 64}}
    model = OwnModel(cell_means, most, lambda variables: (variables["weights"], np.zeros(3, np.float32)))
    folder = tmp_path_factory.mktemp("known") / "run"
    return i2x_jax.explain(model, CHECKED, mosaic(400, 0), settings, folder, trust=True)


def test_claims_are_ideal_where_logits_are_sums_over_cells(known):
    black = {each["fill"]: each for each in known.trust["deletion"]}["black"]
    assert black["images"] >= 30
    assert black["agreement"]["contribution"]["mean"] == pytest.approx(1, abs=1e-3)
    assert abs(black["agreement"]["random"]["mean"]) < 0.2
    assert all(black["above"][name]["low"] > 0 for name in findings.TO_BEAT)
    assert black["given_ink"]["mean"] > 0.9
    assert known.trust["images"] == 32  # of 51: as many passes as the explanation took


def test_layers_are_counted_from_the_last_and_whatever_starts_are_compared(known):
    found = known.trust
    assert [(each["layers"], each["of"]) for each in found["randomisation"]] == [(1, 2), (2, 2)]
    assert len(found["stability"]["rand"]) == len(found["stability"]["rand_by_evidence"]) == 2
    assert [each["prototype"] for each in found["stability"]["first"]] == [each.prototype for each in known.ranking[:5]]
    assert all(0 <= overlap <= 1 for each in found["stability"]["first"] for overlap in each["overlaps"])


def test_summary_report_and_conclusions_tell_of_it(known):
    verdicts = findings.trust(known.trust)
    assert [each.what for each in verdicts] == ["deletion", "randomisation", "K-means starts"]
    assert verdicts[0].held
    assert summary.trusted(verdicts) in known.summary()
    text = (known.path / "report.html").read_text()
    assert "How far to trust this run" in text
    for each in verdicts:
        assert each.sentence in text
        assert each.sentence in known.conclusions()


def test_it_is_added_to_a_finished_run_of_one_s_own_and_made_once(explained, data, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(explained.path, folder)
    pairs = list(zip(STEPS, CHECKPOINTS, strict=True))
    without = (folder / "report.html").read_text()
    assert "How far to trust this run" not in without
    with pytest.raises(InputError) as error:
        _ = Run(folder).trust
    assert "trust=True" in one_line(error)
    found = i2x_jax.explain(PLAIN, pairs, data, SETTINGS, folder, trust=True)
    assert [each["fill"] for each in found.trust["deletion"]] == list(FILLS)
    assert "How far to trust this run" in (folder / "report.html").read_text()
    made = (folder / "trust.json").stat().st_mtime_ns
    i2x_jax.explain(PLAIN, pairs, data, SETTINGS, folder, trust=True)
    assert (folder / "trust.json").stat().st_mtime_ns == made
    with pytest.raises(InputError) as error:
        i2x_jax.explain(PLAIN, pairs, data, SETTINGS, folder, trust="yes")
    assert "trust is 'yes'" in one_line(error)


@pytest.mark.slow
def test_the_program_makes_it_when_asked_and_only_then(base, finished, tmp_path):
    assert not (finished / "trust.json").exists()
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError) as error:
        _ = Run(folder).trust
    assert "--stage=trust" in one_line(error)
    output = run_program(base, folder, "--stage=trust")
    assert steps_printed(output, "done in") == ["trust"]
    assert "How far to trust this run" in output
    assert "How far to trust this run" in (folder / "report.html").read_text()
    header = json.loads((folder / "config.json").read_text())
    assert header["timing"]["trust"] > 0
    assert "Nothing to do: trust already done." in run_program(base, folder, "--stage=trust")


def test_a_map_of_one_location_is_refused(tmp_path):
    settings = {"explain": {"num_prototypes": 2, "pca_dims": 3}, "model": {"allow_1x1": True}}
    model = OwnModel(lambda variables, images: cell_means(variables, images).mean((1, 2), keepdims=True), most)
    with pytest.raises(InputError) as error:
        i2x_jax.explain(model, CHECKED, mosaic(200, 0), settings, tmp_path / "one", trust=True)
    assert "1x1" in one_line(error)


def figures(**changed):
    same = {"mean": 0.5, "low": 0.4, "high": 0.6}
    fill = {
        "agreement": dict.fromkeys(("contribution", *findings.TO_BEAT), same),
        "above": dict.fromkeys(findings.TO_BEAT, same),
        "given_ink": same,
        "images": 90,
    }
    found = {
        "images": 9,
        "deletion": [{"fill": each} | fill for each in FILLS],
        "randomisation": [{"layers": 1, "of": 1, "contributions": {"mean": 0, "low": -0.1, "high": 0.1}}],
        "stability": {"starts": 1, "images": 9, "rand": [0.9], "rand_by_evidence": [0.7], "first": []},
    }
    found["randomisation"][0]["maps"] = found["randomisation"][0]["contributions"]
    return found | changed


class TestVerdicts:
    def held(self, **changed):
        return [each.held for each in findings.trust(figures(**changed))]

    def test_all_may_hold(self):
        assert self.held() == [True, True, True]

    def test_contributions_must_be_above_each_other_beyond_doubt(self):
        fills = figures()["deletion"]
        for each in fills[:2]:
            each["above"] = each["above"] | {"ink": {"mean": 0.1, "low": -0.01, "high": 0.2}}
        assert self.held(deletion=fills)[0] is False
        assert self.held(deletion=[*fills[1:], fills[2]])[0] is True

    def test_what_stays_as_it_was_falls_short(self):
        same = {"mean": 0.9, "low": 0.8, "high": 0.95}
        stage = {"layers": 1, "of": 1, "contributions": same, "maps": same}
        assert self.held(randomisation=[stage])[1] is False

    def test_the_least_agreement_counts(self):
        stability = figures()["stability"] | {"rand_by_evidence": [0.9, 0.3]}
        assert self.held(stability=stability)[2] is False
        assert self.held(stability=stability | {"rand_by_evidence": [None]})[2] is None

    def test_too_few_prototypes_are_no_verdict(self):
        fills = [each | {"images": 19} for each in figures()["deletion"]]
        assert self.held(deletion=fills)[0] is None
