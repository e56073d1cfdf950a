"""Rules for values: a test, and the words for the error.

Sections of a config (`lomar_det.config.section`) and models state a `Rule` for every setting. The
first value that breaks its rule is refused before any data is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import UserError

_ABSENT = object()


@dataclass(frozen=True)
class Rule:
    """``words`` complete the sentence "must be ..."; rules are joined with ``|``."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(f"{self.words} or {other.words}", lambda v: self.holds(v) or other.holds(v))


def whole(at_least: int) -> Rule:
    """A whole number of at least ``at_least``; True and False are not numbers."""

    def holds(value) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and value >= at_least

    return Rule(f"a whole number of at least {at_least}", holds)


def number(interval: str) -> Rule:
    """A finite number in an interval such as ``(0, 1]``; a square bracket includes the end."""
    low, high = map(float, interval[1:-1].split(","))

    def holds(value) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        above = low < value or (interval[0] == "[" and low == value)
        return above and (value < high or (interval[-1] == "]" and value == high))

    return Rule(f"a number in {interval}", holds)


def one_of(*values) -> Rule:
    """One of the given values; the message shows None as ``null``."""
    words = ", ".join("null" if value is None else repr(value) for value in values)
    return Rule(words if len(values) == 1 else f"one of {words}", lambda value: value in values)


def pair(rule: Rule, ascending: bool = False) -> Rule:
    """Two values that both obey ``rule``."""

    def holds(value) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            return False
        return all(map(rule.holds, value)) and (not ascending or value[0] <= value[1])

    order = ", the smaller one first" if ascending else ""
    return Rule(f"two values, each {rule.words}{order}", holds)


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
MAPPING = Rule("a mapping", lambda value: isinstance(value, dict))
TEXT = Rule("text (a number as \"'5'\")", lambda value: isinstance(value, str))


def _are_paths(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return bool(value) and all(map(TEXT.holds, several))


PATHS = Rule("a path, or a list of paths", _are_paths)


def check_settings(settings: Mapping, rules: Mapping[str, Rule]) -> None:
    """Refuses the first setting that breaks its rule.

    Args:
        settings: A config, or any nested mapping.
        rules: Rules by dotted name. A name that ``settings`` does not have is skipped: another
            optimizer, for example, has other settings.

    Raises:
        UserError: a rule is broken; the message names the setting, its value and the rule.
    """
    for name, rule in rules.items():
        value: Any = settings
        for key in name.split("."):
            value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT and not rule.holds(value):
            raise UserError(f"{name}={value} must be {rule.words}")
