"""The settings of a run: frozen, validated, and hashable (DESIGN section 5)."""

import dataclasses
import difflib
import numbers
import operator
from collections.abc import Mapping
from typing import Any

STRATEGIES = (
    "full",
    "curated",
    "random",
    "ambiguous",
    "hard",
    "full>full",
    "curated>curated",
    "curated>full",
    "random>full",
    "ambiguous>full",
    "hard>full",
)
CAMS = ("gradcam", "gradcam++", "hirescam", "layercam")
# What data.name and model.name are where images and network were handed to `i2x_jax.explain`.
OWN = "own"
# The others count only gradients that raise a logit: for a margin they would show one class and not the other.
SIGNED_CAMS = ("gradcam", "hirescam")


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was wrong, the value, what is allowed, and how to mend it. `run.py` prints it and
    exits with code 2; every other exception is a bug and keeps its traceback.
    """

    def __init__(self, message: str):
        # Values and names in it come from anywhere.
        super().__init__(printable(message))


def printable(text: str) -> str:
    r"""The text with an escape, such as `\n`, for every character that would not show as itself on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _at_least(default, low):
    return dataclasses.field(default=default, metadata={"low": low})


def _between(default, low, high):
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def _above_zero(default):
    return dataclasses.field(default=default, metadata={"above": 0})


def _one_of(default, *choices):
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclasses.dataclass(frozen=True)
class _Group:
    """Settings that check themselves when made, whoever makes them."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _checked(f"{self._prefix}{field.name}", getattr(self, field.name), field)
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Group):
    """Which images: `max_train` and `image_size` 0 keep all images and their own size; `validation` is a fraction."""

    _prefix = "data."
    name: str = "digits"
    validation: float = _between(0.1, 0.01, 0.5)
    max_train: int = _at_least(0, 0)
    image_size: int = _at_least(0, 0)
    augment: str = _one_of("shift", "none", "shift", "shift_flip")


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Group):
    """Which network; `tap` names the stage whose feature map is explained ('' for the last), `width` 0 is its own.

    `init_from` names a .safetensors file of the initial weights under torchvision's names ('' draws them).
    """

    _prefix = "model."
    name: str = "cnn"
    stem: str = _one_of("imagenet", "imagenet", "cifar")
    width: int = _at_least(0, 0)
    tap: str = ""
    dtype: str = _one_of("float32", "float32", "bfloat16")
    init_from: str = ""
    allow_1x1: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Group):
    """How it is trained. `checkpoints`: 'log', 'linear', or the steps themselves; `warmup`: a fraction of the steps.

    A stopped training loses at most `resume_every` steps (0: what came after the last kept checkpoint).
    """

    _prefix = "train."
    epochs: int = _at_least(10, 1)
    batch_size: int = _at_least(128, 1)
    optimizer: str = _one_of("adamw", "sgd", "adamw")
    learning_rate: float = _above_zero(1e-3)
    weight_decay: float = _at_least(1e-4, 0)
    warmup: float = _between(0.1, 0, 0.9)
    checkpoints: Any = dataclasses.field(default="log", metadata={"parse": "checkpoints"})
    num_checkpoints: int = _at_least(8, 2)
    resume_every: int = _at_least(500, 0)


@dataclasses.dataclass(frozen=True)
class ExplainConfig(_Group):
    """How it is explained: 0 means "all" for `max_locations` and "chosen from the class size" for `min_cluster_size`.

    `max_locations` bounds the feature vectors K-means is fitted on (all are assigned); `max_pairs` the pairs of
    classes, most confused first, whose uncertain prototypes are sought beside the pair that is refined.
    """

    _prefix = "explain."
    num_prototypes: int = _at_least(16, 2)
    pca_dims: int = _at_least(32, 1)
    max_locations: int = _at_least(0, -1)
    restarts: int = _at_least(4, 1)
    cam: str = _one_of("gradcam", *CAMS)
    target: str = _one_of("label", "label", "predicted")
    pair_target: str = _one_of("label", "label", "margin")
    fit: str = _one_of("samples", "samples", "groups")
    group_by: str = _one_of("class", "class", "global")
    min_cluster_size: int = dataclasses.field(default=0, metadata={"low": 0, "excluded": 1})
    min_samples: int = _at_least(5, 1)
    ridge_lambda: float = _at_least(0.0, 0)
    max_pairs: int = _at_least(45, 0)
    batch_size: int = _at_least(256, 1)

    def __post_init__(self):
        super().__post_init__()
        if self.pair_target == "margin" and self.cam not in SIGNED_CAMS:
            raise InputError(
                f"config key explain.cam is {self.cam!r} with pair_target 'margin'; allowed: {', '.join(SIGNED_CAMS)}; "
                "set --config.explain.cam or --config.explain.pair_target"
            )


@dataclasses.dataclass(frozen=True)
class RefineConfig(_Group):
    """How it is refined: `pair` holds two class names, or is empty for the most confused pair; `seeds` counts them."""

    _prefix = "refine."
    pair: tuple = dataclasses.field(default=(), metadata={"parse": "names"})
    seeds: int = _at_least(5, 1)
    strategies: tuple = dataclasses.field(default=STRATEGIES, metadata={"parse": "names", "subset": STRATEGIES})
    learning_rate: float = _above_zero(3e-4)
    max_left_out: float = _between(0.3, 0.0, 0.9)


@dataclasses.dataclass(frozen=True)
class Config(_Group):
    """All settings of a run; two equal configs and equal data give equal results on one machine."""

    _prefix = ""
    seed: int = _between(0, 0, 2**31 - 1)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    explain: ExplainConfig = dataclasses.field(default_factory=ExplainConfig)
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)


def from_config_dict(settings: Mapping[str, Any]) -> Config:
    """Builds a `Config` from a nested mapping: an `ml_collections.ConfigDict`, or `config.json` read back.

    Keys left out take their defaults.

    Raises:
      InputError: an unknown key, a value of the wrong type, or a value out of range; names key, value and range.
    """
    return _build(Config, settings, "")


def to_dict(config: Config) -> dict:
    """The settings as plain JSON types; `from_config_dict` turns them back into an equal `Config`."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def differences(old: Config, new: Config) -> list[str]:
    """The settings in which two configs differ, one line each: 'train.epochs: 3 -> 5'."""

    def flat(group, prefix=""):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                yield from flat(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", value

    after = dict(flat(new))
    return [f"{key}: {value!r} -> {after[key]!r}" for key, value in flat(old) if after[key] != value]


def _build(group, settings, prefix):
    if not isinstance(settings, Mapping) and not hasattr(settings, "items"):
        key = prefix.rstrip(".") or "config"
        raise InputError(f"{key} is {settings!r}; allowed: a group of settings; set its members instead")
    fields = {field.name: field for field in dataclasses.fields(group)}
    values = {}
    for key, value in settings.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else "remove it"
            allowed = ", ".join(f"{prefix}{name}" for name in fields)
            raise InputError(f"unknown config key {prefix}{key} (value {value!r}); allowed: {allowed}; {hint}")
        nested = fields[key].type if dataclasses.is_dataclass(fields[key].type) else None
        values[key] = _build(nested, value, f"{prefix}{key}.") if nested else value
    return group(**values)


def _checked(key, value, field):
    """The value in its declared type, or one line that says why not."""
    rules = field.metadata
    if rules.get("parse") == "checkpoints":
        return _checked_checkpoints(key, value)
    if rules.get("parse") == "names":
        return _checked_names(key, value, rules.get("subset"))
    kind = field.type
    good = {
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool),
    }.get(kind, isinstance(value, kind))
    if not good:
        raise InputError(
            f"config key {key} is {value!r} of type {type(value).__name__}; allowed: {_allowed(field)}; "
            f"set --config.{key}"
        )
    if kind in (int, float):
        value = kind(value)
    # Written so that NaN fails every comparison.
    inside = (
        ("low" not in rules or value >= rules["low"])
        and ("high" not in rules or value <= rules["high"])
        and ("above" not in rules or value > rules["above"])
        and ("choices" not in rules or value in rules["choices"])
        and ("excluded" not in rules or value != rules["excluded"])
        and (kind is not float or value < float("inf"))
    )
    if not inside:
        raise InputError(f"config key {key} is {value!r}; allowed: {_allowed(field)}; set --config.{key}")
    return value


def _allowed(field):
    rules = field.metadata
    if "choices" in rules:
        return ", ".join(repr(choice) for choice in rules["choices"])
    kind = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False"}.get(
        field.type, f"a {getattr(field.type, '__name__', field.type)}"
    )
    if "high" in rules:
        return f"{kind} from {rules['low']} to {rules['high']}"
    if "low" in rules:
        return f"{kind} of at least {rules['low']}" + (f", not {rules['excluded']}" if "excluded" in rules else "")
    return f"{kind} above {rules['above']}" if "above" in rules else kind


def _checked_checkpoints(key, value):
    if isinstance(value, str) and value in ("log", "linear"):
        return value
    try:
        steps = tuple(_step(step) for step in (value.split(",") if isinstance(value, str) else value))
        if not steps or min(steps) < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"config key {key} is {value!r}; allowed: 'log', 'linear', or steps of at least 0 such as '0,20,100'; "
            f"set --config.{key}"
        ) from None
    return tuple(sorted(set(steps)))


def _step(value):
    """A step as text or as a whole number; 1.5 and True are neither."""
    if isinstance(value, bool):
        raise TypeError
    return int(value) if isinstance(value, str) else operator.index(value)


def _checked_names(key, value, subset):
    """Names, however the command line delivered them: ('4', '9'), (4, 9) and ('4,9',) are the same."""
    if isinstance(value, str):
        value = (value,)
    allowed = ", ".join(subset) if subset else "two different class names such as 4,9, or nothing"
    if not isinstance(value, (tuple, list)):
        raise InputError(f"config key {key} is {value!r}; allowed: {allowed}; set --config.{key}")
    names = tuple(name.strip() for item in value for name in str(item).split(",") if name.strip())
    bad = [name for name in names if subset and name not in subset]
    wrong_count = not names if subset else len(names) not in (0, 2)
    if bad or wrong_count or len(set(names)) != len(names):
        raise InputError(f"config key {key} is {value!r}; allowed: {allowed}; set --config.{key}")
    return names
