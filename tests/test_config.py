import ast
import dataclasses
import json
import math
import pathlib

import ml_collections
import numpy as np
import pytest

from experiments import digits
from i2x_jax import command
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
        ("explain.max_images", 0, -1),
        ("data.image_size", 0, -1),
        ("data.resize", 0, -1),
        ("data.crop", 0, -1),
        ("data.plant_strength", 0.0, -1e-9),
        ("data.plant_strength", 1.0, 1.01),
        ("data.plant_size", 0, -1),
        ("data.plant_seed", 0, -1),
        ("data.plant_seed", 2**31 - 1, 2**31),
        ("model.width", 0, -1),
        ("train.epochs", 1, 0),
        ("model.patch", 1, 0),
        ("model.depth", 0, -1),
        ("train.batch_size", 1, 0),
        ("train.learning_rate", 1e-300, 0.0),
        ("train.weight_decay", 0.0, -1e-9),
        ("train.warmup", 0.0, -1e-9),
        ("train.warmup", 0.9, 0.91),
        ("train.num_checkpoints", 2, 1),
        ("train.resume_every", 0, -1),
        ("explain.num_prototypes", 2, 1),
        ("explain.pca_dims", 1, 0),
        ("explain.max_locations", -1, -2),
        ("explain.restarts", 1, 0),
        ("explain.min_cluster_size", 0, -1),
        ("explain.min_samples", 1, 0),
        ("explain.ridge_lambda", 0.0, -1e-9),
        ("explain.max_pairs", 0, -1),
        ("explain.rivals", 0, -1),
        ("explain.batch_size", 1, 0),
        ("refine.seeds", 1, 0),
        ("refine.phases", 0, -1),
        ("refine.phases", 10, 11),
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


@pytest.mark.parametrize("value", ["all", "none", 1, np.int64(500)])
def test_a_ledger_is_of_all_none_or_so_many(value):
    assert made("explain.ledger", value) == value
    assert from_command_line(f"--config.explain.ledger={value}").explain.ledger == value


@pytest.mark.parametrize("value", [0, -3, True, 1.5, "some", "7", (1, 2), None])
def test_another_ledger_is_refused(value):
    assert "allowed: 'all', 'none', or a number of images of at least 1" in refused("explain.ledger", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("log", "log"),
        ("linear", "linear"),
        ("moved", "moved"),
        ((7,), (7,)),
        ([100, 0, 20, 20], (0, 20, 100)),
        (np.array([3, 1]), (1, 3)),
    ],
)
def test_checkpoints_are_a_word_or_ascending_steps(value, expected):
    assert made("train.checkpoints", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "lag",
        "move",
        "1,two",
        "-1",
        "0,20",
        "7",
        ("0", "5"),
        {1: 2},
        b"ab",
        (),
        [-1, 5],
        (1.5, 2),
        (True, 5),
        [math.inf],
        [math.nan],
        5,
        None,
        1.0,
        [[1]],
    ],
)
def test_other_checkpoints_are_refused(value):
    assert "allowed: 'log', 'linear', 'moved', or steps" in refused("train.checkpoints", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("4", "9"), ("4", "9")),
        (["4", "9"], ("4", "9")),
        ((4, 9), ("4", "9")),
        ((), ()),
        (("cat", "dog"), ("cat", "dog")),
        (("a,b", " c "), ("a,b", " c ")),
        (["Pepper,_bell___healthy", "4, 9"], ("Pepper,_bell___healthy", "4, 9")),
        (("('4','9')", '"'), ("('4','9')", '"')),
    ],
)
def test_a_pair_is_two_names_or_none_each_taken_as_it_is(value, expected):
    assert made("refine.pair", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        ("4",),
        ("4", "9", "2"),
        ("4", "4"),
        ("4,9",),
        "4",
        "4,9",
        "",
        "4,4",
        ("", "4"),
        (4.0, 9),
        (True, 1),
        4,
        None,
        {"4": "9"},
    ],
)
def test_other_pairs_are_refused(value):
    assert "two different class names" in refused("refine.pair", value)


@pytest.mark.parametrize("name", ["", "gentle", "4-9_v2.1", "0", "a" * 100])
def test_a_refinement_is_called_as_a_file_may_be(name):
    assert made("refine.name", name) == name


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "a/b", "/tmp/x", "-x", "a b", "a\n", "é", "a" * 101, "*", "a\0", "a\\b", "~"]
)
def test_another_name_of_a_refinement_is_refused(name):
    with pytest.raises(InputError, match=r"config key refine\.name is .* allowed: nothing, or up to 100 letters"):
        from_config_dict(settings("refine.name", name))


def test_strategies_are_known_and_not_empty():
    assert made("refine.strategies", ("full", "curated>full")) == ("full", "curated>full")
    assert made("refine.strategies", ["hard"]) == ("hard",)
    for value in (
        "",
        "full,curated>full",
        ("full,curated>full",),
        (" full",),
        (),
        ("full", "ful"),
        ("full", "full"),
        3,
        "curated>random",
    ):
        assert "curated>full" in refused("refine.strategies", value)


def test_prototypes_are_different_numbers():
    assert made("refine.prototypes", (7, 12)) == (7, 12)
    assert made("refine.prototypes", [3]) == (3,)
    assert made("refine.prototypes", ()) == ()
    for value in ("7", 7, ("7",), (1.0,), (True,), (-1,), (7, 7), ([1],), None, {1: 2}):
        assert "different numbers of prototypes such as 7,12" in refused("refine.prototypes", value)


def test_an_action_is_never_followed_by_plain_training():
    assert "swap, paste, balance" in refused("refine.actions", ("swap>full",))
    assert "curated>full" in refused("refine.strategies", ("swap>full",))


@pytest.mark.parametrize(("chosen", "acts"), [({}, False), ({"prototypes": (0,)}, True), ({"pick": "evidence"}, True)])
def test_a_refinement_acts_where_prototypes_are_chosen(chosen, acts):
    assert from_config_dict({"refine": chosen}).refine.acts is acts


def from_command_line(*arguments):
    """The config that flags give on top of the defaults, as the command reads it."""
    changes = command.as_flags(["run.py", *arguments])[1:]
    return command.chosen(None, None, [change.removeprefix("--setting=") for change in changes])


PAIRS = {
    "4,9": ("4", "9"),
    "('4','9')": ("4", "9"),
    "(4, 9)": ("4", "9"),
    "'4','9'": ("4", "9"),
    " 4 , 9 ": ("4", "9"),
    '"4","9"': ("4", "9"),
    '"a,b",c': ("a,b", "c"),
    'c, "Pepper,_bell___healthy" ': ("c", "Pepper,_bell___healthy"),
    "('a,b', 'c')": ("a,b", "c"),
    '" a ","say ""b"""': (" a ", 'say "b"'),
    "1_0,0x2": ("1_0", "0x2"),
    "(a,b": ("(a", "b"),
    "'tis,so": ("'tis", "so"),
    "Pepper bell,New York": ("Pepper bell", "New York"),
    "": (),
    "()": (),
}


@pytest.mark.parametrize("text", PAIRS)
def test_the_command_line_gives_a_pair_in_each_form(text):
    assert from_command_line(f"--config.refine.pair={text}").refine.pair == PAIRS[text]


@pytest.mark.parametrize("text", ['"a"b,c', '"a,b', "a", "a,a", "a,b,c", "('4,9',)"])
def test_what_is_no_pair_on_the_command_line_is_refused(text):
    with pytest.raises(InputError, match=r"config key refine\.pair is .*two different class names"):
        from_command_line(f"--config.refine.pair={text}")


@pytest.mark.parametrize(
    ("text", "expected"), [("7,12", (7, 12)), (" 7 , 12", (7, 12)), ("7", (7,)), ("(7, 12)", (7, 12)), ("", ())]
)
def test_the_command_line_gives_prototypes_in_each_form(text, expected):
    assert from_command_line(f"--config.refine.prototypes={text}").refine.prototypes == expected


@pytest.mark.parametrize("text", ["a", "7.5", "7;12", "-1"])
def test_what_is_no_prototype_on_the_command_line_is_refused(text):
    with pytest.raises(InputError, match=r"config key refine\.prototypes is .*different numbers of prototypes"):
        from_command_line(f"--config.refine.prototypes={text}")


@pytest.mark.parametrize("text", ["full,curated", "full, curated", "('full','curated')", "'full','curated'"])
def test_the_command_line_gives_strategies_in_each_form(text):
    assert from_command_line(f"--config.refine.strategies={text}").refine.strategies == ("full", "curated")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0,20,100", (0, 20, 100)), (" 20, 0 ", (0, 20)), ("linear", "linear"), ("5", (5,)), ("[0, 3]", (0, 3))],
)
def test_the_command_line_gives_checkpoints_in_each_form(text, expected):
    assert from_command_line(f"--config.train.checkpoints={text}").train.checkpoints == expected


@pytest.mark.parametrize("text", ["1.5,2", "(1.5, 2)", "1,two", "-1", "lag", "", "True"])
def test_other_checkpoints_on_the_command_line_are_refused(text):
    with pytest.raises(InputError, match=r"config key train\.checkpoints is "):
        from_command_line(f"--config.train.checkpoints={text}")


def test_the_command_line_sets_numbers_and_truth():
    config = from_command_line("--config.train.epochs=2", "--config.train.learning_rate=1", "-config.seed", "3")
    assert (config.train.epochs, config.train.learning_rate, config.seed) == (2, 1.0, 3)
    for text, expected in (("", True), ("=true", True), ("=0", False), ("=False", False)):
        assert from_command_line(f"--config.model.allow_1x1{text}").model.allow_1x1 is expected
    for text in ("--config.model.allow_1x1=yes", "--config.train.epochs=2.0", "--config.train.epochs", "--config."):
        with pytest.raises(InputError):
            from_command_line(text)


def test_home_is_expanded_in_paths_on_the_command_line_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert from_command_line("--config.model.init_from=~/w.safetensors").model.init_from == "/somewhere/w.safetensors"
    assert from_command_line("--config.model.tap=~").model.tap == "~"
    assert made("model.init_from", "~/w.safetensors") == "~/w.safetensors"


def test_a_config_survives_the_way_through_json():
    config = from_config_dict(
        {"seed": 5, "train": {"checkpoints": [0, 3]}, "refine": {"pair": ("4", "9,"), "strategies": ["full"]}}
    )
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config)["refine"]["pair"] == ["4", "9,"]


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
    new = from_config_dict({"seed": 1, "train": {"epochs": 3}, "refine": {"pair": ("4", "9")}})
    assert config_lib.differences(old, old) == []
    assert config_lib.differences(old, new) == [
        "seed: 0 -> 1",
        "train.epochs: 25 -> 3",
        "refine.pair: () -> ('4', '9')",
    ]
    assert config_lib.differences(old, new, without=("refine",)) == ["seed: 0 -> 1", "train.epochs: 25 -> 3"]


def test_every_setting_has_its_help_and_says_what_is_allowed():
    for key, field in config_lib.declared():
        assert field.metadata["help"].endswith("."), key
        assert config_lib.allowed(field), key
    assert dict(config_lib.declared()) == FIELDS


class TestDefaults:
    """They are the digits experiment."""

    def test_they_are_what_the_digits_experiment_asks_for(self):
        assert from_config_dict(digits.get_config()) == Config()
        assert (Config().data.name, Config().model.name) == ("digits", "cnn")

    def test_a_config_stays_the_same_after_a_round_trip(self):
        assert from_config_dict(ml_collections.ConfigDict(to_dict(Config()))) == Config()

    def test_the_experiment_imports_nothing_but_ml_collections(self):
        tree = ast.parse(pathlib.Path(digits.__file__).read_text())
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
        assert imported == {"ml_collections"}
