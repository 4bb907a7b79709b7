import ast
import dataclasses
import json
import math
import pathlib
import sys

import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from experiments import digits
from i2x_jax import config as config_lib
from i2x_jax.config import Config, DataConfig, InputError, RefineConfig, TrainConfig, from_config_dict, to_dict
from tests.helpers import one_line


def settings(key, value):
    """A nested mapping with one setting: 'train.epochs', 3."""
    *groups, name = key.split(".")
    nested = {name: value}
    for group in reversed(groups):
        nested = {group: nested}
    return nested


def value_of(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def made(key, value):
    return value_of(from_config_dict(settings(key, value)), key)


def refused(key, value):
    """The message with which a setting is refused; it names key, value and what is allowed."""
    with pytest.raises(InputError) as error:
        from_config_dict(settings(key, value))
    message = one_line(error)
    assert key in message
    assert repr(value) in message
    assert "allowed: " in message
    return message


def test_a_margin_needs_a_signed_map():
    for cam in ("gradcam", "hirescam"):
        assert made("explain", {"pair_target": "margin", "cam": cam}).cam == cam
    for cam in ("gradcam++", "layercam"):
        with pytest.raises(InputError, match=r"allowed: gradcam, hirescam; set --config\.explain\.cam"):
            from_config_dict({"explain": {"pair_target": "margin", "cam": cam}})


def keys_of(group=Config, prefix=""):
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.type):
            yield from keys_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def keys_of_mapping(mapping, prefix=""):
    for key, value in mapping.items():
        if hasattr(value, "items"):
            yield from keys_of_mapping(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


FIELDS = dict(keys_of())
WRONG_TYPE = {int: (True, 1.0, "3", None, (1,)), float: (True, "0.1", None, 1j), str: (3, None, ()), bool: (1, "True")}
BY_TYPE = [(key, value) for key, field in FIELDS.items() for value in WRONG_TYPE.get(field.type, ())]
CHOICES = [key for key, field in FIELDS.items() if "choices" in field.metadata]
FLOATS = [key for key, field in FIELDS.items() if field.type is float]


def test_an_empty_mapping_gives_the_defaults():
    assert from_config_dict({}) == Config()


@pytest.mark.parametrize(
    ("mapping", "key", "hint"),
    [
        ({"train": {"epoch": 3}}, "train.epoch", "did you mean train.epochs?"),
        ({"sed": 3}, "sed", "did you mean seed?"),
        ({"explain": {"zzzz": 3}}, "explain.zzzz", "remove it"),
    ],
)
def test_an_unknown_key_is_named_with_a_hint(mapping, key, hint):
    with pytest.raises(InputError) as error:
        from_config_dict(mapping)
    message = one_line(error)
    assert f"unknown config key {key} (value 3); allowed: " in message
    assert message.endswith(hint)


@pytest.mark.parametrize("value", [3, "x", None, ("epochs", 3)])
def test_a_group_must_be_a_group(value):
    with pytest.raises(InputError, match=r"train is .* allowed: a group of settings"):
        from_config_dict({"train": value})


def test_the_whole_must_be_a_group():
    with pytest.raises(InputError, match="config is 3; allowed: a group of settings"):
        from_config_dict(3)


@pytest.mark.parametrize(("key", "value"), BY_TYPE, ids=lambda item: repr(item))
def test_a_wrong_type_is_refused(key, value):
    assert f"of type {type(value).__name__}" in refused(key, value)


@pytest.mark.parametrize(
    ("key", "value"), [("train.learning_rate", 1), ("train.warmup", 0), ("refine.max_left_out", 0)]
)
def test_a_whole_number_may_stand_for_a_float_and_becomes_one(key, value):
    assert type(made(key, value)) is float
    assert made(key, value) == value


def test_numpy_numbers_become_python_numbers():
    assert type(made("train.epochs", np.int32(3))) is int
    assert type(made("train.learning_rate", np.float32(0.5))) is float


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_must_be_finite(key, value):
    refused(key, value)


@pytest.mark.parametrize(
    ("key", "allowed", "beyond"),
    [
        ("seed", 0, -1),
        ("seed", 2**31 - 1, 2**31),
        ("data.validation", 0.01, 0.0099),
        ("data.validation", 0.5, 0.501),
        ("data.max_train", 0, -1),
        ("data.image_size", 0, -1),
        ("model.width", 0, -1),
        ("train.epochs", 1, 0),
        ("train.batch_size", 1, 0),
        ("train.learning_rate", 1e-300, 0.0),
        ("train.weight_decay", 0.0, -1e-9),
        ("train.warmup", 0.0, -1e-9),
        ("train.warmup", 0.9, 0.91),
        ("train.num_checkpoints", 2, 1),
        ("train.resume_every", 0, -1),
        ("explain.num_prototypes", 2, 1),
        ("explain.pca_dims", 1, 0),
        ("explain.max_locations", 0, -1),
        ("explain.restarts", 1, 0),
        ("explain.min_cluster_size", 0, -1),
        ("explain.min_samples", 1, 0),
        ("explain.ridge_lambda", 0.0, -1e-9),
        ("explain.max_pairs", 0, -1),
        ("explain.batch_size", 1, 0),
        ("refine.seeds", 1, 0),
        ("refine.learning_rate", 1e-300, -1e-3),
        ("refine.max_left_out", 0.0, -1e-9),
        ("refine.max_left_out", 0.9, 0.91),
    ],
)
def test_ranges_end_where_they_say(key, allowed, beyond):
    assert made(key, allowed) == allowed
    refused(key, beyond)


def test_every_bounded_setting_has_its_boundary_tested():
    bounded = {key for key, field in FIELDS.items() if {"low", "high", "above"} & set(field.metadata)}
    (mark,) = (mark for mark in test_ranges_end_where_they_say.pytestmark if mark.name == "parametrize")
    assert {case[0] for case in mark.args[1]} == bounded


@pytest.mark.parametrize("key", CHOICES)
def test_choices_are_listed_when_another_is_given(key):
    choices = FIELDS[key].metadata["choices"]
    for choice in choices:
        assert made(key, choice) == choice
    assert all(repr(choice) in refused(key, "nonesuch") for choice in choices)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("log", "log"),
        ("linear", "linear"),
        ("0,20,100", (0, 20, 100)),
        (" 20, 0 ", (0, 20)),
        ("7", (7,)),
        ([100, 0, 20, 20], (0, 20, 100)),
        (("0", "5"), (0, 5)),
        (np.array([3, 1]), (1, 3)),
    ],
)
def test_checkpoints_are_a_word_or_ascending_steps(value, expected):
    assert made("train.checkpoints", value) == expected


@pytest.mark.parametrize(
    "value", ["", "lag", "1,two", "-1", (), [-1, 5], (1.5, 2), (True, 5), [math.inf], [math.nan], 5, None, 1.0, [[1]]]
)
def test_other_checkpoints_are_refused(value):
    refused("train.checkpoints", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("4", "9"), ("4", "9")),
        (["4", "9"], ("4", "9")),
        ((4, 9), ("4", "9")),
        ("4,9", ("4", "9")),
        (("4, 9",), ("4", "9")),
        ((), ()),
        ("", ()),
        (("cat", "dog"), ("cat", "dog")),
    ],
)
def test_a_pair_is_two_names_or_none_however_it_is_written(value, expected):
    assert made("refine.pair", value) == expected


@pytest.mark.parametrize("value", [("4",), ("4", "9", "2"), ("4", "4"), "4", "4,4", 4, None, {"4": "9"}])
def test_other_pairs_are_refused(value):
    assert "two different class names" in refused("refine.pair", value)


def test_strategies_are_known_and_not_empty():
    assert made("refine.strategies", "full,curated>full") == ("full", "curated>full")
    assert made("refine.strategies", ["hard"]) == ("hard",)
    for value in ("", (), ("full", "ful"), ("full", "full"), 3, "curated>random"):
        assert "curated>full" in refused("refine.strategies", value)


@pytest.fixture
def from_command_line(monkeypatch):
    """The config that flags give on top of the digits experiment, as `run.py` reads it."""

    def parse(*arguments):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_dict("config", digits.get_config(), flag_values=values)
        values(sys.argv)
        return from_config_dict(holder.value)

    return parse


@pytest.mark.parametrize("text", ["4,9", "('4','9')", "(4, 9)", "'4','9'", "('4,9',)"])
def test_the_command_line_gives_a_pair_in_each_form(from_command_line, text):
    assert from_command_line(f"--config.refine.pair={text}").refine.pair == ("4", "9")


@pytest.mark.parametrize("text", ["full,curated", "('full','curated')", "'full','curated'", "('full,curated',)"])
def test_the_command_line_gives_strategies_in_each_form(from_command_line, text):
    assert from_command_line(f"--config.refine.strategies={text}").refine.strategies == ("full", "curated")


@pytest.mark.parametrize(("text", "expected"), [("0,20,100", (0, 20, 100)), ("linear", "linear"), ("5", (5,))])
def test_the_command_line_gives_checkpoints_in_each_form(from_command_line, text, expected):
    assert from_command_line(f"--config.train.checkpoints={text}").train.checkpoints == expected


def test_the_command_line_sets_numbers(from_command_line):
    config = from_command_line("--config.train.epochs=2", "--config.train.learning_rate=1")
    assert (config.train.epochs, config.train.learning_rate) == (2, 1.0)


def test_a_config_survives_the_way_through_json():
    config = from_config_dict(
        {"seed": 5, "train": {"checkpoints": "0,3"}, "refine": {"pair": "4,9", "strategies": "full"}}
    )
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config)["refine"]["pair"] == ["4", "9"]


def test_equal_configs_hash_equal_and_serve_as_keys():
    one, other = from_config_dict({"seed": 3}), Config(seed=3)
    assert {one: "found"}[other] == "found"
    assert hash(from_config_dict({"train": {"checkpoints": [1, 2]}, "refine": {"pair": ["1", "2"]}}))
    assert len({one, other, Config(seed=4)}) == 2


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3


@pytest.mark.parametrize(
    "make",
    [lambda: TrainConfig(epochs=0), lambda: DataConfig(name=3), lambda: Config(data={}), lambda: RefineConfig(3)],
)
def test_groups_check_themselves_whoever_makes_them(make):
    with pytest.raises(InputError):
        make()


def test_differences_names_each_setting_that_changed():
    old = Config()
    new = from_config_dict({"seed": 1, "train": {"epochs": 3}, "refine": {"pair": "4,9"}})
    assert config_lib.differences(old, old) == []
    assert config_lib.differences(old, new) == [
        "seed: 0 -> 1",
        "train.epochs: 10 -> 3",
        "refine.pair: () -> ('4', '9')",
    ]


class TestExperiment:
    def test_sets_every_key_and_no_other(self):
        assert set(keys_of_mapping(digits.get_config())) == set(FIELDS)

    def test_is_valid_and_stays_so_after_a_round_trip(self):
        config = from_config_dict(digits.get_config())
        assert from_config_dict(ml_collections.ConfigDict(to_dict(config))) == config
        assert (config.data.name, config.model.name) == ("digits", "cnn")

    def test_imports_nothing_but_ml_collections(self):
        tree = ast.parse(pathlib.Path(digits.__file__).read_text())
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
        assert imported == {"ml_collections"}
