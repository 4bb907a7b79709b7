"""The structured explanation: typed, saved as JSON, queried from Python (DESIGN 2.7 and 4). NumPy only."""

import dataclasses
import json
import math
import sys
import types
import typing

import numpy as np

from i2x_jax.config import InputError

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class ClassEvidence:
    """Mean contribution of a prototype to a class's logit, over that class's samples at the last checkpoint."""

    name: str
    contribution: float | None


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """Another prototype and the Euclidean distance of the two centroids, in PCA units."""

    prototype: int
    distance: float | None


@dataclasses.dataclass(frozen=True)
class Prototype:
    """A recurring pattern: its locations, the classes whose logit it raises most, and the prototypes most like it."""

    id: int
    count: int
    share: float | None  # of all locations
    supports: tuple[ClassEvidence, ...]  # largest first, only above 0
    nearest: tuple[Neighbour, ...]


@dataclasses.dataclass(frozen=True)
class Specialised:
    """A prototype salient in at least 60 % of one group of a class and in at most 20 % of another, in one interval."""

    interval: int
    prototype: int
    most: int  # the group in which it is salient most often, and the share of that group's samples
    most_share: float
    least: int
    least_share: float


@dataclasses.dataclass(frozen=True)
class Support:
    """How a prototype's change moved a class's confidence in one interval, with a sign that the bootstrap agrees on.

    `contribution` (logits) is the mean over the class's samples at the end of the interval, `change` that over the
    interval; behind a linear head they are exact. Where `disagrees` is set, the signs of support and contribution
    differ, the contribution is at least 0.01 logits large, and an exact one is the one to believe. The prototype is in
    at least 5 % of the class's images.
    """

    interval: int
    prototype: int
    support: float  # confidence per standard deviation of the prototype's change
    agreement: float  # share of the refits that share its sign
    contribution: float | None
    change: float | None
    disagrees: bool


@dataclasses.dataclass(frozen=True)
class ClassExplanation:
    """One class: prototypes shared by its samples at the last checkpoint, specialised to groups, and supporting it."""

    name: str
    samples: int
    shared: tuple[int, ...]
    specialised: tuple[Specialised, ...]
    support: tuple[Support, ...]


@dataclasses.dataclass(frozen=True)
class Separating:
    """Mean evidence of a prototype for the right one of two classes, over a's and over b's samples, in logits."""

    prototype: int
    evidence_a: float | None
    evidence_b: float | None


@dataclasses.dataclass(frozen=True)
class UncertainPrototype:
    """A prototype that wavered between a and b: score and raw sign flips, and s (positive for a) in each interval."""

    prototype: int
    score: float
    flips: int
    s: tuple[float | None, ...]
    stable: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class PairExplanation:
    """Two classes. What rests on the pair's own fit is None where that pair was not analysed."""

    a: str
    b: str
    told_apart: int | None  # step
    soft_confusions: tuple[float | None, float | None]  # mean Y_b over a, mean Y_a over b; validation, last checkpoint
    confusions: tuple[int, int]  # samples of a taken for b, of b taken for a
    separating: tuple[Separating, ...]
    uncertain: tuple[UncertainPrototype, ...] | None
    counted: tuple[bool, ...] | None  # per interval, as the two below
    r2: tuple[float | None, ...] | None
    r2_null: tuple[float | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Interval:
    """The time between two checkpoints: its groups (in samples), and how much the mapping explains of it."""

    from_step: int = dataclasses.field(metadata={"key": "from"})
    to_step: int = dataclasses.field(metadata={"key": "to"})
    groups: int
    noise: int
    unchanged: int
    fallbacks: tuple[str, ...]
    r2: float | None
    r2_class: float | None
    r2_total: float | None
    r2_groups: float | None
    gain: float | None
    gain_total: float | None
    null: tuple[float | None, float | None, float | None]  # of the gain: mean, 95th and 99th percentile
    above_null: bool  # the gain is above the 95th percentile


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A structured explanation; pairs come most confused first."""

    schema: int
    classes: tuple[str, ...]
    steps: tuple[int, ...]
    group_by: str
    fit: str
    prototypes: tuple[Prototype, ...]
    per_class: tuple[ClassExplanation, ...]
    pairs: tuple[PairExplanation, ...]
    intervals: tuple[Interval, ...]

    def __repr__(self) -> str:
        """A few lines; the parts are there to be asked for."""
        names = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        measured = sum(each.gain is not None for each in self.intervals)
        lines = [
            f"Explanation of {len(self.classes)} classes ({_short(names)[1:-1]})",
            f"  {len(self.prototypes)} prototypes, checkpoints at steps {_short(list(map(int, self.steps)))[1:-1]}",
            f"  {len(self.pairs)} pairs of classes; a fit could be measured in {measured} of {len(self.intervals)} "
            "intervals",
        ]
        if self.pairs:
            pair = self.pairs[0]
            apart = "never told apart" if pair.told_apart is None else f"told apart from step {pair.told_apart}"
            lines.append(f"  most confused: {_short(pair.a)} and {_short(pair.b)}, {apart}")
        return "\n".join(lines)

    def for_class(self, name: str) -> ClassExplanation:
        """The explanation of one class. Raises InputError for an unknown name."""
        return self.per_class[self._index(name)]

    def pair(self, first: str, second: str) -> PairExplanation:
        """The explanation of two classes, named in either order. Raises InputError if unknown, or one class twice."""
        wanted = {self.classes[self._index(first)], self.classes[self._index(second)]}
        for pair in self.pairs:
            if {pair.a, pair.b} == wanted:
                return pair
        raise InputError(f"no pair of {first!r} and {second!r}; allowed: two different classes; name another one")

    def _index(self, name):
        if str(name) not in self.classes:
            raise InputError(f"unknown class {name!r}; allowed: {', '.join(self.classes)}; check the spelling")
        return self.classes.index(str(name))


def to_json(explanation: Explanation) -> str:
    """The explanation as indented JSON: equal explanations give equal text.

    Numbers are rounded to 6 significant digits; what is not finite becomes null.
    """
    return json.dumps(_plain(explanation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Explanation:
    """Reads what `to_json` wrote.

    Raises:
      InputError: not JSON, another schema, an unknown or missing key, or a value of the wrong type; one line.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"explanation is not JSON ({error}); allowed: the text of explanation.json; {_MEND}") from None
    if isinstance(data, dict) and "schema" in data and data["schema"] != SCHEMA:
        raise InputError(f"explanation has schema {_short(data['schema'])}; allowed: {SCHEMA}; {_MEND}")
    explanation = _typed(Explanation, data, "explanation")
    for key, size, wanted in (
        ("per_class", len(explanation.per_class), len(explanation.classes)),
        ("intervals", len(explanation.intervals), len(explanation.steps) - 1),
    ):
        if size != wanted:
            raise InputError(f"explanation.{key} has {size} members; allowed: {wanted}; {_MEND}")
    return explanation


_MEND = "run the stage explain again"


def _key(field):
    return field.metadata.get("key", field.name)  # `from` cannot name a field in Python


def _plain(value):
    if dataclasses.is_dataclass(value):
        return {_key(field): _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else None  # + 0.0 drops the sign of -0.0
    return value


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _typed(kind, value, where):
    """The JSON value as the annotated type `kind`, or one line that names the place where it is not."""
    if dataclasses.is_dataclass(kind):
        return _typed_record(kind, value, where)
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # here always "something or None"
        return None if value is None else _typed(arguments[0], value, where)
    if typing.get_origin(kind) is tuple:
        open_ended = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (open_ended or len(value) == len(arguments)):
            raise _wrong(where, value, "a list" if open_ended else f"a list of {len(arguments)}")
        kinds = arguments[:1] * len(value) if open_ended else arguments
        return tuple(_typed(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:  # NaN and inf fail
        return float(value)
    if type(value) is not kind or kind is float:
        names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
        raise _wrong(where, value, names[kind])
    return value


def _typed_record(kind, value, where):
    fields = {_key(field): field for field in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise _wrong(where, value, f"an object with {', '.join(fields)}")
    for problem, keys in (("unknown", value.keys() - fields), ("missing", fields.keys() - value)):
        if keys:
            raise InputError(f"{where} has {problem} key {_short(min(keys))}; allowed: {', '.join(fields)}; {_MEND}")
    # No annotation is a forward reference, so `field.type` is the type itself.
    return kind(**{fields[key].name: _typed(fields[key].type, item, f"{where}.{key}") for key, item in value.items()})


def _wrong(where, value, allowed):
    return InputError(f"{where} is {_short(value)}; allowed: {allowed}; {_MEND}")
