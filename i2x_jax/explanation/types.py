"""The structured explanation: typed, saved as JSON, queried from Python (DESIGN 2.7 and 4). NumPy only."""

import dataclasses
import functools
import json
import math
import types
import typing

import numpy as np

from i2x_jax.config import InputError
from i2x_jax.schema import check_json, strict_json

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
      InputError: not JSON, or not valid by explanation.schema.json; one line that names the place.
    """
    mend = "allowed: the text of explanation.json; run the stage explain again"
    try:
        data = strict_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"explanation is not JSON ({error}); {mend}") from None
    try:
        check_json(data, "explanation")
        for key, wanted in (("per_class", len(data["classes"])), ("intervals", len(data["steps"]) - 1)):
            if len(data[key]) != wanted:
                raise ValueError(f"$.{key} has {len(data[key])} members instead of {wanted}")
    except ValueError as error:
        raise InputError(f"explanation is none that this program wrote ({error}); {mend}") from None
    return _reader(Explanation)(data)


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


@functools.cache
def _reader(kind):
    """What turns a JSON value, which its schema allows, into the annotated type `kind`."""
    if dataclasses.is_dataclass(kind):
        # No annotation is a forward reference, so `field.type` is the type itself.
        members = [(_key(field), _reader(field.type)) for field in dataclasses.fields(kind)]
        return lambda value: kind(*[read(value[key]) for key, read in members])
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):  # here always "something or None"
        read_something = _reader(arguments[0])
        return lambda value: None if value is None else read_something(value)
    if typing.get_origin(kind) is not tuple:
        return float if kind is float else lambda value: value
    readers = [_reader(each) for each in arguments if each is not Ellipsis]
    if arguments[-1] is Ellipsis:
        return lambda value: tuple(map(readers[0], value))
    return lambda value: tuple(read(item) for read, item in zip(readers, value, strict=True))


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
