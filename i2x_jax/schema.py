"""JSON as this program takes it: strict, and held against a schema of results/schemas.

One validator for every JSON file. A run is opened by reading several, and an explanation of many classes has millions
of values: jsonschema takes 0.2 s to import and 0.5 s for the explanation of the digits, this 0.02 s. It knows the words
of JSON Schema that the schemas use, and refuses to read a schema with any other.
"""

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from i2x_jax.config import ACTIONS, CONTROLS, RIVALS, STRATEGIES, RefineConfig, json_schema

SCHEMAS = pathlib.Path(__file__).parent / "results" / "schemas"
# More digits are no number that a run could have written.
MAX_DIGITS = 19
# Settings of a refinement that there were not yet when tables were first written; they take their defaults.
LATER = ("prototypes", "pick", "actions", "mask", "phases")
# Of a value that is quoted in a message.
MAX_QUOTED = 60

Check = Callable[[Any], None]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


class Mismatch(ValueError):
    """A value that its schema does not allow; `path` leads there, last part first."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.path = []

    def __str__(self):
        return f"${''.join(reversed(self.path))} {self.args[0]}"


def strict_json(text: str) -> Any:
    """JSON in which every key stands once and every number is finite; raises `ValueError` or `RecursionError`."""
    return json.loads(
        text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite, parse_int=_whole_number
    )


def _unique(pairs):
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return keys


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole_number(text):
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def check_json(value: Any, schema: str) -> None:
    """Raises `ValueError`, in one line that names the place, unless a JSON value is valid by a schema.

    Args:
      value: what `strict_json` returned.
      schema: config, explanation, metrics, refine_seed, refinement or trust.
    """
    _checker(schema)(value)


def load_schema(name: str) -> dict:
    """A schema of results/schemas, complete: what follows from the settings is put in from their declarations."""
    rules = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    declared = {
        "config": json_schema(),
        "refine": _without_later(json_schema(RefineConfig)),
        "strategy_name": {"enum": [*STRATEGIES, *ACTIONS, *CONTROLS, *RIVALS]},
    }
    return rules | {"$defs": rules.get("$defs", {}) | declared}


def _without_later(rules):
    """The schema of a refinement's settings, in which those may be missing that tables of before do not tell of."""
    return rules | {"required": [name for name in rules["required"] if name not in LATER]}


@functools.cache
def _checker(name):
    rules = load_schema(name)
    return _compiled(rules, rules["$defs"], {})


def _compiled(rule: Mapping[str, Any], definitions: Mapping[str, Any], known: dict[str, Check]) -> Check:
    """What checks a value by one rule of a schema.

    Args:
      rule: the rule.
      definitions: what "$ref" may refer to.
      known: those of them that are compiled already.
    """
    for word in rule:
        if word not in (*SIMPLE, *OBJECTS, "items", "oneOf", "$ref", *SAID):
            raise KeyError(f"the schema word {word} is not known here")
    checks = [SIMPLE[word](argument) for word, argument in rule.items() if word in SIMPLE]
    if "$ref" in rule:
        name = rule["$ref"].removeprefix("#/$defs/")
        if name not in known:
            known[name] = _compiled(definitions[name], definitions, known)
        checks.append(known[name])
    if "oneOf" in rule:
        checks.append(_one_of([_compiled(each, definitions, known) for each in rule["oneOf"]]))
    if "items" in rule:
        checks.append(_items(_compiled(rule["items"], definitions, known)))
    if any(word in rule for word in OBJECTS):
        members = {key: _compiled(each, definitions, known) for key, each in rule.get("properties", {}).items()}
        others = rule.get("additionalProperties", {})
        names = _compiled(rule.get("propertyNames", {}), definitions, known)
        checks.append(
            _object(
                members, others is not False and _compiled(others, definitions, known), rule.get("required", ()), names
            )
        )
    return checks[0] if len(checks) == 1 else _all(checks)


def _all(checks):
    def check(value):
        for each in checks:
            each(value)

    return check


# Words about objects, and words that only say something.
OBJECTS = ("properties", "additionalProperties", "required", "propertyNames")
SAID = ("$schema", "$defs", "title", "description")


def _type(kinds):
    names = [kinds] if isinstance(kinds, str) else kinds
    allowed = tuple(kind for name in names for kind in (TYPES[name] if name == "number" else (TYPES[name],)))
    text = ", ".join(map(repr, names))

    def check(value):
        # True is no number, though Python has it as one.
        if type(value) not in allowed:
            raise Mismatch(f"{_quoted(value)} is not of type {text}")

    return check


def _rule(holds: Callable[[Any, Any], bool], words: str, kinds: Any = object) -> Callable[[Any], Check]:
    """Makes checks of values of some kinds from what must hold between a value and the argument in the schema."""

    def with_argument(argument):
        def check(value):
            if isinstance(value, kinds) and not holds(value, argument):
                raise Mismatch(f"{_quoted(value)} {words.format(_quoted(argument))}")

        return check

    return with_argument


def _same(value, other):
    return value == other and isinstance(value, bool) == isinstance(other, bool)


SIMPLE: dict[str, Callable[[Any], Check]] = {
    "type": _type,
    "const": _rule(_same, "is not {}"),
    "not": lambda rule: _rule(lambda value, other: not _same(value, other), "is not allowed")(rule["const"]),
    "enum": _rule(lambda value, choices: any(_same(value, one) for one in choices), "is not one of {}"),
    "minimum": _rule(lambda value, low: value >= low, "is less than the minimum of {}", (int, float)),
    "maximum": _rule(lambda value, high: value <= high, "is greater than the maximum of {}", (int, float)),
    "exclusiveMinimum": _rule(lambda value, low: value > low, "is not above {}", (int, float)),
    "minLength": _rule(lambda value, least: len(value) >= least, "is shorter than {}", str),
    "pattern": _rule(lambda value, pattern: re.search(pattern, value) is not None, "does not match {}", str),
    "minItems": _rule(lambda value, least: len(value) >= least, "has fewer members than {}", list),
    "maxItems": _rule(lambda value, most: len(value) <= most, "has more members than {}", list),
    "uniqueItems": _rule(lambda value, _: len(set(map(repr, value))) == len(value), "holds something twice", list),
}


def _one_of(choices):
    def check(value):
        faults = []
        for choice in choices:
            try:
                choice(value)
                return
            except Mismatch as fault:
                faults.append(fault)
        # The one that was meant is most likely the one that fits furthest.
        raise max(faults, key=lambda fault: len(fault.path))

    return check


def _items(item):
    def check(value):
        if isinstance(value, list):
            for place, member in enumerate(value):
                try:
                    item(member)
                except Mismatch as fault:
                    fault.path.append(f"[{place}]")
                    raise

    return check


def _object(members, others, required, names):
    def check(value):
        if not isinstance(value, dict):
            return
        for key in required:
            if key not in value:
                raise Mismatch(f"{key!r} is a required property")
        for key, member in value.items():
            names(key)
            rule = members.get(key, others)
            if rule is False:
                raise Mismatch(f"has a property {_quoted(key)} too many")
            try:
                rule(member)
            except Mismatch as fault:
                fault.path.append(f".{key[:MAX_QUOTED]}")
                raise

    return check


def _quoted(value):
    text = repr(value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."
