import dataclasses
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from i2x_jax import config
from i2x_jax.config import InputError
from i2x_jax.explanation import analysis
from i2x_jax.explanation import build as structure
from i2x_jax.explanation import types as explanation
from i2x_jax.explanation.uncertainty import PairScores
from i2x_jax.schema import load_schema

CLASSES = ("cat", "dog", "é 7")


def schema(name):
    loaded = load_schema(name)
    jsonschema.Draft202012Validator.check_schema(loaded)
    return jsonschema.Draft202012Validator(loaded)


def arrays():
    """A run of T=3 checkpoints, N=12 samples (4 of each class), K=4 prototypes, M=3 classes, Nv=6."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 4).astype(np.int32)
    groups = np.tile([0, 0, 1, -1], 3)[None].repeat(2, axis=0).astype(np.int32)
    groups[1] = -2
    area = np.tile([4, 4, 4, 4], (12, 1))
    intensity = rng.uniform(0.9, 1.1, (3, 12, 4)).astype(np.float32)
    intensity[:, :, 0] = 4  # prototype 0 holds more than half of the mass everywhere
    beta = np.zeros((2, 4, 3))
    beta[0] = rng.normal(size=(4, 3))
    beta[1] = np.nan
    confidence = np.full((3, 6, 3), 1 / 3)
    confidence[2] = np.eye(3)[[0, 0, 1, 0, 2, 2]]
    nothing = np.full(2, np.nan)
    return {
        "classes": CLASSES,
        "steps": np.array([0, 5, 20], np.int32),
        "labels": labels,
        "counts": np.array([10, 20, 30, 40]),
        "centroids": np.array([[0.0, 0], [1, 0], [3, 0], [6, 0]], np.float32),
        "area": area,
        "intensity": intensity,
        "groups": groups,
        "fallbacks": [["dog", "cat", "dog"], []],
        "mapping": {
            "beta": beta,
            "beta_groups": -beta,
            "sign_agreement": np.array([np.ones((4, 3)), np.full((4, 3), np.nan)]),
            **dict.fromkeys(("r2_class", "r2_total", "gain_total"), nothing),
            "r2": np.array([0.123456789, np.nan]),
            "r2_groups": nothing,
            "gain": np.array([0.5, np.nan]),
            "gain_null": np.array([[0.0, 0.1, 0.2], [np.nan] * 3]),
        },
        "contributions": rng.normal(size=(3, 3, 4, 3)).astype(np.float32),
        "validation_labels": np.array([0, 0, 1, 1, 2, 2], np.int32),
        "validation_confidence": confidence,
        "pairs": {
            (0, 1): PairScores(
                s=np.array([[0.2, 0.1, 0.0, np.nan], [-0.1, 0.1, 0.0, np.nan]]),
                ci=np.zeros((2, 4, 2)),
                stable=np.array([[True, True, False, False]] * 2),
                r2=np.array([0.5, 0.4]),
                r2_null=np.array([0.1, np.nan]),
                counted=np.array([True, True]),
            )
        },
        "group_by": "class",
        "fit": "samples",
    }


def build(run):
    """The explanation of a run whose arrays stand side by side, as `arrays` makes them."""
    run = dict(run)
    pairs, groups, fallbacks, *rest = (run.pop(name) for name in ("pairs", "groups", "fallbacks", "mapping"))
    how = {name: run.pop(name) for name in ("group_by", "fit")}
    measured = analysis.Measured(**run, confidence=None, rivals=np.tile(np.arange(3), (3, 1)))
    return structure.build_explanation(
        structure.Analysis(measured, analysis.Grouping(groups, fallbacks), *rest, pairs, **how)
    )


def built(**changes):
    return build(arrays() | changes)


def test_salient_needs_over_5_percent_of_the_mass():
    area = np.ones((2, 60), int)
    intensity = np.zeros((2, 60))
    intensity[0, :20] = 1  # 5 % each, three times its share of the area
    intensity[1, :19] = 1
    assert structure.salient(intensity, area).sum(axis=1).tolist() == [0, 19]


def test_salient_needs_at_least_one_and_a_half_times_its_share_of_the_area():
    area = np.array([[2, 8], [2, 8], [2, 8]])
    # Prototype 0 covers 20 %; shares of the mass 30 %, just below it, and 30 % with signed intensity.
    intensity = np.array([[12.0, 7.0], [11.9, 7.0], [12.0, -7.0]])
    assert structure.salient(intensity, area).tolist() == [[True, False], [False, False], [True, False]]


def test_nothing_is_salient_without_mass():
    assert not structure.salient(np.zeros((2, 3)), np.ones((2, 3), int)).any()


def test_shared_from_exactly_80_percent_of_a_class():
    salient = np.zeros((10, 2), bool)
    salient[:4, 0] = True
    salient[5:8, 0] = True
    labels = np.repeat([0, 2], 5)
    assert structure.shared(salient, labels, 3).tolist() == [[True, False], [False, False], [False, False]]


def test_specialised_between_exactly_60_and_20_percent():
    # Group 3: 5 samples, group 7: 5 samples, then noise and unchanged samples that would spoil every share.
    groups = np.array([3] * 5 + [7] * 5 + [-1] * 3 + [-2] * 3)
    salient = np.zeros((16, 4), bool)
    salient[:3, 0] = salient[5:6, 0] = True  # 60 % and 20 %
    salient[:2, 1] = True  # 40 % and none
    salient[:3, 2] = salient[5:7, 2] = True  # 60 % and 40 %
    salient[5:10, 3] = True  # none and all
    salient[10:] = True
    records = structure.specialised(salient, np.ones(16, int), groups, 2, interval=4)
    assert records == [
        [],
        [explanation.Specialised(4, 0, 3, 0.6, 7, 0.2), explanation.Specialised(4, 3, 7, 1.0, 3, 0.0)],
    ]


def test_specialised_compares_groups_within_a_class_only():
    salient = np.array([[True], [True], [False], [False]])
    assert structure.specialised(salient, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 2) == [[], []]


def test_prototypes_name_neighbours_and_the_classes_they_support():
    contributions = np.zeros((3, 3, 4, 3), np.float32)
    contributions[-1, 0, 1, 0] = 0.5
    contributions[-1, 2, 1, 2] = 0.75
    contributions[-1, 1, 1, 1] = -2
    contributions[-1, 1, 1, 0] = 9  # of another class's samples: no support
    second = built(contributions=contributions).prototypes[1]
    assert (second.id, second.count, second.share) == (1, 20, 0.2)
    assert second.supports == (explanation.ClassEvidence("é 7", 0.75), explanation.ClassEvidence("cat", 0.5))
    assert second.nearest == tuple(explanation.Neighbour(*pair) for pair in ((0, 1.0), (2, 2.0), (3, 5.0)))


def test_a_prototype_supports_only_classes_whose_logit_it_raises():
    contributions = np.zeros((3, 3, 4, 3), np.float32)
    contributions[-1, :, 2, :] = np.diag([1e-6, 0, -1e-6])
    prototypes = built(contributions=contributions).prototypes
    assert [each.supports for each in prototypes] == [(), (), (explanation.ClassEvidence("cat", 1e-6),), ()]


def planted_support(**changes):
    run = arrays()
    run["intensity"] = np.zeros((3, 12, 4), np.float32)
    run["intensity"][1, ::2] = [2, 4, 6, 0]  # deviations 1, 2, 3, 0 in the first interval and in the second
    run["mapping"]["beta"] = np.zeros((2, 4, 3))
    run["mapping"]["beta"][0, :, 1] = [0.5, -0.5, 0.1, 1.0]
    run["mapping"]["sign_agreement"] = np.full((2, 4, 3), 0.9)
    run["contributions"] = np.zeros((3, 3, 4, 3))
    run["contributions"][1, 1, :2, 1] = [2, 3]
    run["contributions"][0, 1, :2, 1] = [3, 1]
    return run | changes


def test_support_is_deviation_times_coefficient_beside_the_contribution():
    supports = build(planted_support()).for_class("dog").support
    assert supports == (
        explanation.Support(0, 1, -1.0, 0.9, 3.0, 2.0, disagrees=True),
        explanation.Support(0, 0, 0.5, 0.9, 2.0, -1.0, disagrees=False),
        explanation.Support(0, 2, 0.3, 0.9, 0.0, 0.0, disagrees=False),  # no contribution, no disagreement
    )  # prototype 3 did not change


def test_support_names_prototypes_that_occur_in_at_least_5_percent_of_the_class():
    run = planted_support()
    labels = np.repeat([0, 1, 2], 20).astype(np.int32)
    area = np.zeros((60, 4), int)
    area[:, 1] = 1  # everywhere
    area[20, 0] = 1  # in one of the 20 dogs: exactly 5 %
    area[:20, 2] = 1  # in other classes only
    intensity = np.zeros((3, 60, 4))
    intensity[1, ::2] = [2, 4, 6, 0]
    run |= {"labels": labels, "area": area, "intensity": intensity, "groups": np.zeros((2, 60), np.int32)}
    supports = build(run).for_class("dog").support
    assert [record.prototype for record in supports] == [1, 0]
    run["labels"] = np.append(labels[:-1], 1)  # 21 dogs: less than 5 %
    supports = build(run).for_class("dog").support
    assert [record.prototype for record in supports] == [1]


@pytest.mark.parametrize(
    ("contribution", "disagrees"), [(0.0, False), (0.0099, False), (0.0101, True), (-0.0101, False)]
)
def test_support_disagrees_with_contributions_of_at_least_a_hundredth_logit(contribution, disagrees):
    run = planted_support()
    run["contributions"][1, 1, 1, 1] = contribution  # the support of prototype 1 is -1
    record = build(run).for_class("dog").support[0]
    assert (record.prototype, record.disagrees) == (1, disagrees)


def test_support_lists_stable_signs_only():
    run = planted_support()
    run["mapping"]["sign_agreement"][0, :, 1] = [0.9, 0.895, np.nan, 1]
    assert [record.prototype for record in build(run).for_class("dog").support] == [0]


def test_support_of_the_group_fit_must_agree_in_sign_with_the_sample_fit():
    run = planted_support(fit="groups")
    run["mapping"]["beta_groups"] = run["mapping"]["beta"] * [[[2]] * 2 + [[-2]] * 2]
    supports = build(run).for_class("dog").support
    assert [(record.prototype, record.support) for record in supports] == [(1, -2.0), (0, 1.0)]


def test_support_is_capped_for_each_class_and_interval():
    k = structure.MAX_SUPPORT + 3
    run = planted_support(counts=np.ones(k, int), centroids=np.eye(k), area=np.ones((12, k), int))
    run["intensity"] = np.random.default_rng(0).uniform(size=(3, 12, k))
    run["mapping"] |= {"beta": np.ones((2, k, 3)), "sign_agreement": np.ones((2, k, 3)), "r2": np.ones(2)}
    run |= {"contributions": np.zeros((3, 3, k, 3)), "pairs": {}}
    supports = build(run).for_class("dog").support
    assert [record.interval for record in supports] == [0] * structure.MAX_SUPPORT + [1] * structure.MAX_SUPPORT
    run["mapping"]["r2"] = np.array([np.nan, 0.1])  # too little changed in the first interval to measure a fit
    supports = build(run).for_class("dog").support
    assert [record.interval for record in supports] == [1] * structure.MAX_SUPPORT


def test_pairs_come_most_confused_first_with_their_confusions():
    found = built()
    assert [(pair.a, pair.b) for pair in found.pairs] == [("cat", "dog"), ("cat", "é 7"), ("dog", "é 7")]
    assert found.pairs[0].soft_confusions == (0.0, 0.5)
    assert found.pairs[0].confusions == (0, 1)
    assert [pair.told_apart for pair in found.pairs] == [None, 20, 20]


def test_separating_ranks_evidence_for_the_right_class():
    contributions = np.zeros((3, 3, 4, 3))
    contributions[-1, 0, 2] = [1.0, 0.25, 0]  # samples of cat: 0.75 for cat
    contributions[-1, 1, 2] = [0.5, 0.25, 0]  # samples of dog: -0.25 for dog
    contributions[-1, 1, 3] = [0, 2.0, 0]
    separating = built(contributions=contributions).pair("cat", "dog").separating
    assert separating[:2] == (explanation.Separating(3, 0.0, 2.0), explanation.Separating(2, 0.75, -0.25))


def test_uncertain_prototypes_of_an_analysed_pair():
    pair = built().pair("cat", "dog")
    assert pair.uncertain == (explanation.UncertainPrototype(0, 0.1, 1, (0.2, -0.1), (True, True)),)
    assert (pair.counted, pair.r2, pair.r2_null) == ((True, True), (0.5, 0.4), (0.1, None))


def test_a_pair_analysed_without_result_differs_from_one_not_analysed():
    run = arrays()
    scores = run["pairs"][0, 1]
    found = built(pairs={(0, 1): scores._replace(stable=np.zeros((2, 4), bool))})
    assert found.pair("cat", "dog").uncertain == ()
    other = found.pair("cat", "é 7")
    assert (other.uncertain, other.counted, other.r2, other.r2_null) == (None, None, None, None)


def test_pairs_of_scores_are_given_smaller_class_first():
    with pytest.raises(ValueError, match="smaller index"):
        built(pairs={(1, 0): arrays()["pairs"][0, 1]})


def test_intervals_count_groups_and_samples():
    first, second = built().intervals
    assert (first.from_step, first.to_step, first.groups, first.noise, first.unchanged) == (0, 5, 6, 3, 0)
    assert (second.from_step, second.to_step, second.groups, second.noise, second.unchanged) == (5, 20, 0, 0, 12)
    assert first.fallbacks == ("cat", "dog")
    assert (first.r2, first.gain, first.null, first.above_null) == (0.123457, 0.5, (0.0, 0.1, 0.2), True)
    assert (second.r2, second.gain, second.null, second.above_null) == (None, None, (None, None, None), False)
    assert built(group_by="global").intervals[0].groups == 2


def test_a_gain_equal_to_its_null_is_not_above_it():
    run = arrays()
    run["mapping"]["gain"] = np.array([0.1, 0.0])
    assert not build(run).intervals[0].above_null


def test_shared_prototypes_of_the_last_checkpoint():
    intensity = np.ones((3, 12, 4))
    intensity[-1, :4, 2] = 9
    found = built(intensity=intensity)
    assert [of_class.shared for of_class in found.per_class] == [(2,), (), ()]
    assert [of_class.samples for of_class in found.per_class] == [4, 4, 4]


def test_specialised_uses_the_end_of_each_interval():
    intensity = np.ones((3, 12, 4))
    intensity[1, 2, 3] = 9  # the one sample of cat's group 1
    found = built(intensity=intensity).for_class("cat").specialised
    assert found == (explanation.Specialised(0, 3, 1, 1.0, 0, 0.0),)


def test_intensity_may_be_a_memory_map(tmp_path):
    np.save(tmp_path / "intensity.npy", arrays()["intensity"])
    assert built(intensity=np.load(tmp_path / "intensity.npy", mmap_mode="r")) == built()


def test_json_round_trip_is_exact_and_repeatable():
    found = built()
    text = explanation.to_json(found)
    assert explanation.from_json(text) == found
    assert explanation.to_json(explanation.from_json(text)) == text == explanation.to_json(built())
    assert "NaN" not in text


def test_json_rounds_numbers_and_drops_what_is_not_finite():
    neighbours = tuple(explanation.Neighbour(k, value) for k, value in enumerate((1 / 3, np.nan, np.inf, -0.0)))
    found = built()
    changed = dataclasses.replace(
        found, prototypes=(dataclasses.replace(found.prototypes[0], nearest=neighbours), *found.prototypes[1:])
    )
    distances = [one["distance"] for one in json.loads(explanation.to_json(changed))["prototypes"][0]["nearest"]]
    assert repr(distances) == "[0.333333, None, None, 0.0]"


def test_json_is_valid_under_its_schema():
    data = json.loads(explanation.to_json(built()))
    schema("explanation").validate(data)
    with pytest.raises(jsonschema.ValidationError):
        schema("explanation").validate(data | {"extra": 1})


def test_schema_and_dataclasses_name_the_same_keys():
    definitions = schema("explanation").schema
    names = {
        explanation.Prototype: "prototype",
        explanation.ClassExplanation: "class_explanation",
        explanation.Specialised: "specialised",
        explanation.Support: "support",
        explanation.PairExplanation: "pair",
        explanation.UncertainPrototype: "uncertain",
        explanation.Interval: "interval",
    }
    closed = [(kind, definitions["$defs"][name]) for kind, name in names.items()]
    for kind, definition in [(explanation.Explanation, definitions), *closed]:
        keys = [field.metadata.get("key", field.name) for field in dataclasses.fields(kind)]
        assert keys == list(definition["properties"]) == definition["required"]


def changed_json(change):
    data = json.loads(explanation.to_json(built()))
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "\\$ \\[\\] is not of type 'object'"),
        ("{}", "\\$ 'schema' is a required property"),
        (changed_json(lambda data: data.update(schema=99)), "\\$.schema 99 is not 1"),
        (changed_json(lambda data: data.pop("steps")), "\\$ 'steps' is a required property"),
        (changed_json(lambda data: data.update(extra=1)), "\\$ has a property 'extra' too many"),
        (changed_json(lambda data: data.update(schema=True)), "\\$.schema True is not 1"),
        (changed_json(lambda data: data.update(steps="0")), "\\$.steps '0' is not of type 'array'"),
        (changed_json(lambda data: data["steps"].append(1.5)), "\\$.steps\\[3\\] 1.5 is not of type 'integer'"),
        (changed_json(lambda data: data["classes"].append(7)), "\\$.classes\\[3\\] 7 is not of type 'string'"),
        (
            changed_json(lambda data: data["intervals"][0].update(gain="x\ny")),
            "\\$.intervals\\[0\\].gain 'x.*is not of type 'number', 'null'",
        ),
        (
            changed_json(lambda data: data["intervals"][0].update(gain=True)),
            "\\.gain True is not of type 'number', 'null'",
        ),
        (changed_json(lambda data: data["intervals"][0].update(gain=np.nan)), "not JSON .NaN is not a finite number"),
        (changed_json(lambda data: data["intervals"][0].update(gain=10**400)), "not JSON .a number has 401 digits"),
        (changed_json(lambda data: data["intervals"][0].update(null=[1])), "\\.null \\[1\\] has fewer members than 3"),
        (changed_json(lambda data: data["intervals"][0].update(above_null=1)), "above_null 1 is not of type 'boolean'"),
        (changed_json(lambda data: data["intervals"].pop()), "\\$.intervals has 1 members instead of 2"),
        (changed_json(lambda data: data["per_class"].pop()), "\\$.per_class has 2 members instead of 3"),
        (changed_json(lambda data: data["pairs"].append("x" * 1000)), "\\$.pairs\\[3\\] 'xxx"),
    ],
)
def test_malformed_json_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        explanation.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_whole_numbers_are_read_where_a_number_stands():
    text = changed_json(lambda data: data["intervals"][0].update(gain=1))
    assert repr(explanation.from_json(text).intervals[0].gain) == "1.0"


def test_pairs_are_found_in_either_order():
    found = built()
    assert found.pair("é 7", "cat") is found.pair("cat", "é 7")
    assert found.for_class("dog") is found.per_class[1]


def test_unknown_names_are_refused_with_those_allowed():
    found = built()
    for query in (lambda: found.pair("cat", "cow"), lambda: found.for_class("cow")):
        with pytest.raises(InputError, match="unknown class 'cow'; allowed: cat, dog, é 7"):
            query()
    with pytest.raises(InputError, match="two different classes"):
        found.pair("cat", "cat")


def test_reading_an_explanation_does_not_import_jax():
    code = "import sys, i2x_jax.explanation; sys.exit('jax' in sys.modules or 'sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def config_file():
    return {
        "config": config.to_dict(config.Config()),
        "provenance": {
            "versions": {"jax": "0.10.2"},
            "devices": ["cpu:0"],
            "platform": "Linux",
            "git_revision": None,
            "data_fingerprint": {"train": "0" * 64},
        },
        "timing": {"train": 1.5},
    }


def test_config_schema_takes_what_the_config_gives():
    schema("config").validate(config_file())
    data = config_file()
    chosen = {"refine": {"pair": ("4", "9")}, "train": {"checkpoints": (0, 20)}}
    data["config"] = config.to_dict(config.from_config_dict(chosen))
    schema("config").validate(data)


def test_config_schema_is_closed():
    for path in (["config"], ["config", "train"], ["provenance"], []):
        data = config_file()
        place = data
        for key in path:
            place = place[key]
        place["unknown"] = 1
        with pytest.raises(jsonschema.ValidationError, match="unknown"):
            schema("config").validate(data)


def test_metrics_schema_is_open_but_needs_its_keys():
    line = {"step": 0, "split": "train", "loss": 2.3, "accuracy": 0.1}
    schema("metrics").validate(line | {"learning_rate": 1e-3})
    for key in line:
        with pytest.raises(jsonschema.ValidationError, match=key):
            schema("metrics").validate({name: value for name, value in line.items() if name != key})


def refinement_file():
    result = {
        "accuracy": 0.9,
        "pair_confusions": 3,
        "worst_class": {"class": "dog", "accuracy": 0.8},
        "confusion": [[9, 1], [2, 8]],
    }
    three = {"accuracy": 0.9, "pair_confusions": 3.0, "worst_class": 0.8}
    interval = {"mean": 0.0, "low": None, "high": None}
    return {
        "schema": 1,
        "pair": ["cat", "dog"],
        "seeds": 1,
        "strategies": {
            "full": {
                "applicable": True,
                "phases": 1,
                "seeds": [{"seed": 0, **result}],
                "mean": three,
                "std": dict.fromkeys(three),
            },
            "curated>full": {"applicable": False, "phases": 2, "seeds": [], "reason": "no uncertain prototype"},
        },
        "before": result,
        "differences": [
            {"strategy": "curated", "against": "full", "phases": 1, **dict.fromkeys(three, interval)},
        ],
        "left_out": {"cat": 0, "dog": 0},
    }


def test_refinement_schema():
    schema("refinement").validate(refinement_file())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["strategies"]["full"].update(seeds=[]),
        lambda data: data["strategies"]["full"].update(applicable=False),
        lambda data: data["strategies"]["curated>full"].pop("reason"),
        lambda data: data["strategies"].update(other=data["strategies"]["full"]),
        lambda data: data["before"].update(seed=0),
        lambda data: data["differences"][0]["accuracy"].pop("low"),
        lambda data: data.pop("left_out"),
    ],
)
def test_refinement_schema_refuses(change):
    data = refinement_file()
    change(data)
    with pytest.raises(jsonschema.ValidationError):
        schema("refinement").validate(data)
