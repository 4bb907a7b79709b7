"""The validator of JSON files, held against jsonschema."""

import copy
import json
import pathlib
import random

import jsonschema
import pytest

from i2x_jax import schema
from i2x_jax.config import STRATEGIES, Config, from_config_dict, to_dict
from i2x_jax.explanation.types import from_json, to_json
from i2x_jax.schema import check_json, load_schema

NAMES = sorted(path.name.partition(".")[0] for path in schema.SCHEMAS.glob("*.schema.json"))


INTERVAL = {"mean": 0.5, "low": 0.4, "high": 0.6}
TO_BEAT = ("intensity", "ink", "area", "random")
TRUST = {
    "images": 32,
    "deletion": [
        {
            "fill": "black",
            "agreement": dict.fromkeys(("contribution", *TO_BEAT), INTERVAL),
            "above": dict.fromkeys(TO_BEAT, INTERVAL),
            "given_ink": None,
            "images": 30,
        }
    ],
    "randomisation": [{"layers": 1, "of": 5, "contributions": INTERVAL, "maps": INTERVAL}],
    "stability": {
        "starts": 1,
        "images": 100,
        "rand": [0.8],
        "rand_by_evidence": [None],
        "first": [{"prototype": 3, "overlaps": [0.9]}],
    },
}


@pytest.fixture
def files(finished):
    """A valid value for each schema."""
    read = {
        name: json.loads((finished / f"{name}.json").read_text()) for name in ("config", "explanation", "refinement")
    }
    before = read["refinement"]["before"]
    seed = {"settings": to_dict(Config())["refine"], "outcomes": {"full": before}}
    line = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    return read | {"metrics": line, "refine_seed": seed, "trust": TRUST}


# What stands in for a value: of each type, at and beyond the limits that schemas set.
STRANGERS = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    0.5,
    -0.5,
    1.5,
    3.0,
    10**12,
    "",
    "full",
    "x" * 200,
    [],
    [1, 1],
    [[]],
    {},
    {"a": 1},
)


# jsonschema takes milliseconds for each.
SAMPLED = 500


def variants(value):
    """The value with one part of it replaced, taken out or added; of lists, the first member."""
    for stranger in STRANGERS:
        yield copy.deepcopy(stranger)
    if isinstance(value, dict):
        for key in list(value)[:12]:
            yield {other: kept for other, kept in value.items() if other != key}
            for variant in variants(value[key]):
                yield value | {key: variant}
        yield value | {"stranger": 1}
    elif isinstance(value, list) and value:
        yield value[:-1]
        yield [*value, value[0]]
        for variant in variants(value[0]):
            yield [variant, *value[1:]]


def shortened(value):
    """So much of a long list as has to be looked at."""
    if isinstance(value, dict):
        return {key: shortened(member) for key, member in value.items()}
    few = value if not isinstance(value, list) or len(value) <= 3 else value[:2]
    return [shortened(member) for member in few] if isinstance(few, list) else few


def whole(value):
    """Whether 3.0 stands somewhere, which JSON Schema takes for a whole number, and this program does not."""
    if isinstance(value, (dict, list)):
        return any(whole(member) for member in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value == 3.0


def complaint(value, name):
    try:
        check_json(value, name)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_it_says_of_every_value_what_jsonschema_says(files, name):
    theirs = jsonschema.Draft202012Validator(load_schema(name))
    check_json(files[name], name)
    counts = [0, 0]
    every = list(variants(shortened(files[name])))
    for value in random.Random(0).sample(every, min(len(every), SAMPLED)):
        said = complaint(value, name)
        ours = said is None
        assert ours or (said.startswith("$") and "\n" not in said and len(said) < 300)
        if not whole(value):
            assert theirs.is_valid(value) == ours, value
        counts[ours] += 1
    assert min(counts) > 5


def test_a_number_that_is_whole_but_written_as_none_is_no_whole_number():
    with pytest.raises(ValueError, match=r"\$\.step 3\.0 is not of type 'integer'"):
        check_json({"step": 3.0, "split": "a", "loss": 1, "accuracy": 1}, "metrics")


def test_a_word_that_it_does_not_know_is_refused():
    with pytest.raises(KeyError, match="multipleOf"):
        schema._compiled({"type": "number", "multipleOf": 3}, {}, {})


def test_a_schema_is_complete_and_valid_and_repeats_no_setting():
    for name in NAMES:
        jsonschema.Draft202012Validator.check_schema(load_schema(name))
    text = (schema.SCHEMAS / "config.schema.json").read_text()
    assert not [group for group in ("epochs", "num_prototypes", "max_left_out") if group in text]
    text = (schema.SCHEMAS / "refinement.schema.json").read_text()
    assert not [name for name in STRATEGIES if ">" in name and name in text]


def test_the_schema_of_the_settings_allows_what_they_allow():
    rules = load_schema("config")
    settings = rules["$defs"]["config"]
    valid = jsonschema.Draft202012Validator(settings)
    assert valid.is_valid(to_dict(Config()))
    assert settings["properties"]["train"]["properties"]["epochs"] == {
        "description": "Passes over the training images.",
        "type": "integer",
        "minimum": 1,
    }
    for changed in ({"train": {"checkpoints": (0, 20)}}, {"refine": {"pair": ("a,b", "c"), "name": "x"}}):
        assert valid.is_valid(to_dict(from_config_dict(changed)))
    for group, key, value in (("explain", "min_cluster_size", 1), ("refine", "name", "a/b"), ("model", "stem", "x")):
        harmed = to_dict(Config())
        harmed[group][key] = value
        assert not valid.is_valid(harmed)


def test_an_explanation_is_read_as_it_was_written(finished):
    text = pathlib.Path(finished, "explanation.json").read_text(encoding="utf-8")
    assert to_json(from_json(text)) == text
