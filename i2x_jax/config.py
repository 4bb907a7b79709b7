"""The settings of a run: frozen, validated, and hashable; the defaults are the digits experiment.

A setting is declared once, as a field of a group below: with its type, default, range and help. What is refused, the
list that `--help` prints and the JSON schema all follow from that.
"""

import dataclasses
import difflib
import numbers
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
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
# What can be done about a prototype, and what is always run beside it, at as many steps (DESIGN 2.13). None of them is
# followed by training on images as they are: that would bring back what was taken away.
ACTIONS = ("swap", "paste", "balance", "fill_mean", "fill_blur", "drop")
CONTROLS = (
    "plain",
    "random_patch",
    "random_prototype",
    "cutout",
    "leave_out",
    "leave_out_random",
    "true_mask",
)
# What is run beside them where there are audit images: it trains on these, as no action and no control does.
RIVALS = ("dfr", "audit_tune")
# How checkpoints are spaced where their steps are not listed.
SPACINGS = ("log", "linear", "moved")
CAMS = ("gradcam", "gradcam++", "hirescam", "layercam")
# What data.name and model.name are where images and network were handed to `i2x_jax.explain`.
OWN = "own"
MAX_SEED = 2**31 - 1
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


def listed(names: Sequence[str], most: int, between: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


# How a refinement may be called: it becomes the name of a file.
FILE_NAME = r"([A-Za-z0-9][A-Za-z0-9_.-]{0,99})?"


def _setting(default, text, **rules):
    """A field with its help and its rules: low, high, above, excluded, choices, subset, pattern, parse, path."""
    return dataclasses.field(default=default, metadata={"help": text, **rules})


@dataclasses.dataclass(frozen=True)
class _Group:
    """Settings that check themselves when made, whoever makes them."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _checked(f"{self._prefix}{field.name}", getattr(self, field.name), field)
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Group):
    """Which images."""

    _prefix = "data."
    name: str = _setting(
        "digits",
        "The data set: digits, parts (parts:SEED of another seed), folder:DIR or csv:FILE of pictures, or one of "
        "TensorFlow Datasets.",
    )
    validation: float = _setting(
        0.15, "The fraction of the training images held out for validation.", low=0.01, high=0.5
    )
    max_train: int = _setting(0, "Training images used, at most; 0 for all.", low=0)
    image_size: int = _setting(
        0, "The side of the squares that images are scaled to, in pixels; 0 for their own size.", low=0
    )
    preprocess: str = _setting(
        "",
        "How images are brought to size, in a word: imagenet for torchvision's evaluation transform, data.resize 256 "
        "and data.crop 224; '' for what these say.",
        choices=("", "imagenet"),
    )
    resize: int = _setting(
        0, "The shorter side is scaled to so many pixels, proportions kept, in place of image_size; 0 for not.", low=0
    )
    crop: int = _setting(0, "The central square of so many pixels is kept, after data.resize; 0 for all.", low=0)
    interpolation: str = _setting("bilinear", "How images are scaled.", choices=("bilinear", "bicubic", "nearest"))
    channels: int = _setting(
        0, "1 for grey images, 3 for RGB, 0 for what the set has (of pictures: 1 if all are grey).", choices=(0, 1, 3)
    )
    skip_broken: bool = _setting(False, "Whether pictures that cannot be read are left out, instead of refused.")
    augment: str = _setting("shift", "How training images are varied.", choices=("none", "shift", "shift_flip"))
    plant: str = _setting(
        "",
        "A cue drawn into the images that tells the class: a tag of one class, or a square whose colour tells each; "
        "'' for none.",
        choices=("", "tag", "tag_anywhere", "colour"),
    )
    plant_strength: float = _setting(
        0.98, "The fraction of the tagged class that has the tag, or of all images whose colour tells.", low=0, high=1
    )
    plant_size: int = _setting(0, "The side of the cue in pixels; 0 for 5, or 4 of a colour.", low=0)
    plant_place: str = _setting(
        "top_left",
        "The corner that the cue stands in, moved by a pixel; of no account to tag_anywhere.",
        choices=("top_left", "top_right", "bottom_left", "bottom_right"),
    )
    plant_seed: int = _setting(
        0,
        "The seed of the cue; modulo the number of classes, the number of the tagged class.",
        low=0,
        high=MAX_SEED,
    )
    audit: str = _setting(
        "", "A data set in which a suspected link is broken, to choose by; its test images, '' for none."
    )
    unbiased: str = _setting("", "A data set without the link, to test on once; its test images, '' for none.")

    def __post_init__(self):
        super().__post_init__()
        sizes = [key for key in ("image_size", "resize", "crop") if getattr(self, key)]
        if (self.preprocess and sizes) or (self.image_size and len(sizes) > 1):
            first = "preprocess" if self.preprocess else "image_size"
            raise InputError(
                f"config key data.{sizes[-1]} is {getattr(self, sizes[-1])} beside data.{first} "
                f"{getattr(self, first)!r}; allowed: data.preprocess, or data.image_size, or data.resize and data.crop;"
                f" leave one out"
            )
        if self.crop > self.resize > 0:
            raise InputError(
                f"config key data.crop is {self.crop}; allowed: at most {self.resize}, which is data.resize; set "
                "--config.data.crop"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Group):
    """Which network."""

    _prefix = "model."
    name: str = _setting("cnn", "The network.")
    stem: str = _setting("imagenet", "How a ResNet begins: for large images or small.", choices=("imagenet", "cifar"))
    width: int = _setting(32, "Channels of the first stage, or of a vit; 0 for the network's own number.", low=0)
    patch: int = _setting(16, "The side in pixels of the patches of a vit.", low=1)
    depth: int = _setting(0, "The blocks of a vit; 0 for its own 12.", low=0)
    pool: str = _setting(
        "mean",
        "How a vit ends: a mean over the patches behind the last norm, or before a norm, or a class token.",
        choices=("mean", "mean_norm", "token"),
    )
    tap: str = _setting("", "The stage whose feature map is explained; '' for the last.")
    dtype: str = _setting("float32", "What the network computes in.", choices=("float32", "bfloat16"))
    init_from: str = _setting(
        "", "A .safetensors file of initial weights under torchvision's names; '' draws them.", path=True
    )
    allow_1x1: bool = _setting(False, "Whether a feature map of a single location may be explained.")


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Group):
    """How it is trained."""

    _prefix = "train."
    epochs: int = _setting(25, "Passes over the training images.", low=1)
    batch_size: int = _setting(64, "Images a step; a multiple of the number of devices.", low=1)
    optimizer: str = _setting("adamw", "The optimizer.", choices=("sgd", "adamw"))
    learning_rate: float = _setting(4e-3, "The highest learning rate.", above=0)
    weight_decay: float = _setting(1e-2, "Weight decay.", low=0)
    warmup: float = _setting(0.1, "The fraction of the steps in which the learning rate rises.", low=0, high=0.9)
    checkpoints: str | tuple[int, ...] = _setting(
        "log",
        "The steps whose checkpoints are analysed: spaced by 'log' or 'linear', those that cut what confidences "
        "'moved' into equal parts, or the steps themselves.",
        parse="checkpoints",
        choices=SPACINGS,
    )
    num_checkpoints: int = _setting(8, "How many there are, unless steps are listed.", low=2)
    resume_every: int = _setting(
        500, "Steps that a stopped training loses at most; 0 for all since the last checkpoint kept.", low=0
    )


@dataclasses.dataclass(frozen=True)
class ExplainConfig(_Group):
    """How it is explained."""

    _prefix = "explain."
    classes: tuple[str, ...] = _setting(
        (), "Classes whose training images are explained, at least two; none for all.", parse="classes"
    )
    max_images: int = _setting(
        0, "Training images explained, at most, of each class as many as of any other; 0 for all.", low=0
    )
    num_prototypes: int = _setting(16, "Prototypes, the clusters of K-means.", low=2)
    pca_dims: int = _setting(32, "Dimensions that feature vectors are reduced to before.", low=1)
    max_locations: int = _setting(
        0, "Feature vectors that K-means is fitted on; 0 for 4,096 a prototype, -1 for all.", low=-1
    )
    restarts: int = _setting(4, "Starts of K-means, of which the best is kept.", low=1)
    cam: str = _setting("gradcam", "The saliency rule.", choices=CAMS)
    target: str = _setting("label", "The class whose logit saliency is of.", choices=("label", "predicted"))
    pair_target: str = _setting(
        "label",
        "What a pair of classes is analysed by: saliency of the label, or of the pair's margin.",
        choices=("label", "margin"),
    )
    fit: str = _setting("samples", "What the mapping is fitted on.", choices=("samples", "groups"))
    group_by: str = _setting(
        "class", "Samples are grouped class by class, or all at once.", choices=("class", "global")
    )
    min_cluster_size: int = _setting(
        0, "The smallest group of HDBSCAN; 0 has it chosen from the size of the class.", low=0, excluded=1
    )
    min_samples: int = _setting(5, "HDBSCAN's number of neighbours.", low=1)
    ridge_lambda: float = _setting(0.0, "The penalty of the fit on groups; 0 for 1 % of the mean square.", low=0)
    max_pairs: int = _setting(
        45, "Pairs of classes, most confused first, that are analysed beside the one that is refined.", low=0
    )
    rivals: int = _setting(
        0, "Classes kept of each class's samples, itself and those it is taken for; 0 for 10, or all of fewer.", low=0
    )
    ledger: str | int = _setting(
        "all",
        "Whose changes of confidence are accounted for: those of 'all' training images or of 'none', or of so many, "
        "of each class as many as of any other. Behind a head that is not linear each image takes 48 M backward passes "
        "of the head a checkpoint.",
        parse="images",
        choices=("all", "none"),
    )
    batch_size: int = _setting(256, "Images at a time.", low=1)

    def __post_init__(self):
        super().__post_init__()
        if self.pair_target == "margin" and self.cam not in SIGNED_CAMS:
            raise InputError(
                f"config key explain.cam is {self.cam!r} with pair_target 'margin'; allowed: {', '.join(SIGNED_CAMS)}; "
                "set --config.explain.cam or --config.explain.pair_target"
            )


@dataclasses.dataclass(frozen=True)
class RefineConfig(_Group):
    """How it is refined; these alone may differ from what a run was begun with, in a refinement of another name."""

    _prefix = "refine."
    name: str = _setting(
        "",
        "What this refinement is called; one run may have several, the one called '' being shown first.",
        pattern=FILE_NAME,
    )
    pair: tuple[str, ...] = _setting((), "Two class names; none for the most confused pair.", parse="pair")
    seeds: int = _setting(5, "How often each strategy is run.", low=1)
    strategies: tuple[str, ...] = _setting(
        STRATEGIES, "What is tried where no prototype is chosen.", parse="names", subset=STRATEGIES
    )
    prototypes: tuple[int, ...] = _setting((), "Prototypes to act on, by their numbers; none for none.", parse="ids")
    pick: str = _setting(
        "",
        "Which prototypes are acted on where none is named: the first by evidence per location, those that raise an "
        "alarm on the audit images, or the uncertain ones of the pair; '' for none.",
        choices=("", "evidence", "alarm", "uncertain"),
    )
    actions: tuple[str, ...] = _setting(
        ("swap",), "What is done about them, beside controls that are always run.", parse="names", subset=ACTIONS
    )
    mask: str = _setting(
        "auto",
        "Where they are in the pixels: in each image their own pattern, in all images the place of most of it, or "
        "whichever is better on the audit images (without any, the pattern).",
        choices=("auto", "pattern", "place"),
    )
    phases: int = _setting(
        2, "How many phases an action takes; 0 for 1 or 2, as is better on the audit images.", low=0, high=10
    )
    learning_rate: float = _setting(5e-4, "The highest learning rate.", above=0)
    max_left_out: float = _setting(0.3, "The fraction of a class that may be left out, at most.", low=0.0, high=0.9)

    @property
    def acts(self) -> bool:
        """Whether prototypes are acted on (DESIGN 2.13), instead of samples left out (2.9)."""
        return bool(self.prototypes or self.pick)


@dataclasses.dataclass(frozen=True)
class Config(_Group):
    """All settings of a run; two equal configs and equal data give equal results on one machine."""

    _prefix = ""
    seed: int = _setting(0, "The seed of whatever is drawn.", low=0, high=MAX_SEED)
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


def to_dict(config: Config | RefineConfig) -> dict:
    """The settings as plain JSON types; `from_config_dict` turns those of a `Config` back into an equal one."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def declared(group: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting by its full name, such as 'train.epochs', with its field."""
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.type):
            yield from declared(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def differences(old: Config, new: Config, without: Sequence[str] = ()) -> list[str]:
    """The settings in which two configs differ, one line each: 'train.epochs: 3 -> 5'.

    Args:
      old: one config.
      new: the other.
      without: groups that are passed over, such as 'refine'.
    """
    read = {key: operator.attrgetter(key) for key, _ in declared() if key.split(".")[0] not in without}
    return [f"{key}: {of(old)!r} -> {of(new)!r}" for key, of in read.items() if of(old) != of(new)]


def allowed(field: dataclasses.Field) -> str:
    """What a setting may be, in words."""
    rules = field.metadata
    if rules.get("parse") == "checkpoints":
        return f"{', '.join(map(repr, SPACINGS))}, or steps of at least 0 such as 0,20,100"
    if rules.get("parse") == "images":
        return f"{', '.join(map(repr, rules['choices']))}, or a number of images of at least 1"
    if rules.get("parse") == "pair":
        return "two different class names such as 4,9, or nothing"
    if rules.get("parse") == "classes":
        return "at least two different class names such as 4,7,9, or nothing"
    if rules.get("parse") == "ids":
        return "different numbers of prototypes such as 7,12, or nothing"
    if "subset" in rules:
        return ", ".join(rules["subset"])
    if "choices" in rules:
        return ", ".join(repr(choice) for choice in rules["choices"])
    if "pattern" in rules:
        return "nothing, or up to 100 letters, digits and _.- of which the first is a letter or a digit"
    kind = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False"}[field.type]
    if "high" in rules:
        return f"{kind} from {rules['low']} to {rules['high']}"
    if "low" in rules:
        return f"{kind} of at least {rules['low']}" + (f", not {rules['excluded']}" if "excluded" in rules else "")
    return f"{kind} above {rules['above']}" if "above" in rules else kind


def json_schema(group: type = Config) -> dict:
    """The JSON schema of what `to_dict` makes of a group of settings, closed and complete."""
    members = {
        field.name: json_schema(field.type) if dataclasses.is_dataclass(field.type) else _value_schema(field)
        for field in dataclasses.fields(group)
    }
    return {"type": "object", "additionalProperties": False, "required": list(members), "properties": members}


def _value_schema(field):
    rules, said = field.metadata, {"description": field.metadata["help"]}
    if rules.get("parse") == "checkpoints":
        steps = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
        return said | {"oneOf": [{"enum": list(rules["choices"])}, steps]}
    if rules.get("parse") == "images":
        return said | {"oneOf": [{"enum": list(rules["choices"])}, {"type": "integer", "minimum": 1}]}
    if rules.get("parse") == "pair":
        return said | {"type": "array", "items": {"type": "string"}, "maxItems": 2, "uniqueItems": True}
    if rules.get("parse") == "classes":
        return said | {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    if rules.get("parse") == "ids":
        return said | {"type": "array", "items": {"type": "integer", "minimum": 0}, "uniqueItems": True}
    if "subset" in rules:
        return said | {"type": "array", "items": {"enum": list(rules["subset"])}, "minItems": 1, "uniqueItems": True}
    if "choices" in rules:
        return said | {"enum": list(rules["choices"])}
    kind = {int: "integer", float: "number", str: "string", bool: "boolean"}[field.type]
    words = {"low": "minimum", "high": "maximum", "above": "exclusiveMinimum"}
    schema = said | {"type": kind} | {word: rules[rule] for rule, word in words.items() if rule in rules}
    if "excluded" in rules:
        schema["not"] = {"const": rules["excluded"]}
    return schema | ({"pattern": f"^{rules['pattern']}$"} if "pattern" in rules else {})


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
    if dataclasses.is_dataclass(field.type):
        if isinstance(value, field.type):
            return value
        raise InputError(f"{key} is {value!r}; allowed: a group of settings; set its members instead")
    rules = field.metadata
    if "parse" in rules:
        made = {"checkpoints": _checkpoints, "ids": _ids, "images": lambda value: _images(value, rules["choices"])}.get(
            rules["parse"], lambda value: _names(value, rules.get("subset"), rules["parse"] == "classes")
        )(value)
        if made is None:
            raise _refused(key, value, field)
        return made
    kind = field.type
    good = {
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        float: isinstance(value, numbers.Real) and not isinstance(value, bool),
    }.get(kind, isinstance(value, kind))
    if not good:
        raise _refused(key, value, field, f" of type {type(value).__name__}")
    if kind in (int, float):
        value = kind(value)
    # Written so that NaN fails every comparison.
    inside = (
        ("low" not in rules or value >= rules["low"])
        and ("high" not in rules or value <= rules["high"])
        and ("above" not in rules or value > rules["above"])
        and ("choices" not in rules or value in rules["choices"])
        and ("excluded" not in rules or value != rules["excluded"])
        and ("pattern" not in rules or re.fullmatch(rules["pattern"], value))
        and (kind is not float or value < float("inf"))
    )
    if not inside:
        raise _refused(key, value, field)
    return value


def _refused(key, value, field, kind=""):
    return InputError(f"config key {key} is {value!r}{kind}; allowed: {allowed(field)}; set --config.{key}")


def _checkpoints(value):
    """One of `SPACINGS` or ascending steps; None for anything else, such as 1.5 or True among the steps."""
    if isinstance(value, str):
        return value if value in SPACINGS else None
    if isinstance(value, (Mapping, bytes)):
        return None
    try:
        steps = [operator.index(step) for step in value]
    except TypeError:
        return None
    if not steps or min(steps) < 0 or any(isinstance(step, bool) for step in value):
        return None
    return tuple(sorted(set(steps)))


def _images(value, words):
    """One of some words, or a number of at least 1; None for anything else."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value) if value >= 1 else None
    return value if isinstance(value, str) and value in words else None


def _ids(value):
    """Different numbers of at least 0, in their order; None for anything else."""
    if not isinstance(value, (tuple, list)):
        return None
    good = all(isinstance(each, numbers.Integral) and not isinstance(each, bool) and each >= 0 for each in value)
    return tuple(int(each) for each in value) if good and len(set(value)) == len(value) else None


def _names(value, subset, any_number=False):
    """The names as they are, commas and spaces included; None where they are not what is asked for.

    That is some of a subset, two names or none, or any number of at least two, or none.

    A class may well be called 4, and (4, 9) means the two of that name.
    """
    if not isinstance(value, (tuple, list)):
        return None
    if not all(isinstance(name, (str, numbers.Integral)) and not isinstance(name, bool) for name in value):
        return None
    names = tuple(str(name) for name in value)
    counted = len(names) == 1 if any_number else len(names) not in (0, 2)
    wrong = not names or set(names) - set(subset) if subset else counted or "" in names
    return None if wrong or len(set(names)) != len(names) else names
