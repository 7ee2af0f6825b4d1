"""Search spaces of an experiment file. A space stands in place of a value and gives the values that a search may try.

    training:
      gp_weight: {log_uniform: [0.1, 100], fixed: 10}
    degradation:
      fraction: {interval: [0.02, 0.9], fixed: [0.4, 0.6]}
      mix: {interval: [0, 1], when: {degradation.kind: mixed}}

Ends are included. `mrisr train` uses the `fixed` value, and a search tries it first. With `when`, a key is searched
only while another key has one of the given values; otherwise it keeps its fixed value or its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mrisr.config.networks import DEFAULT_GENERATOR
from mrisr.config.values import plain

NUMERIC = ("uniform", "log_uniform", "int", "log_int")
KINDS = (*NUMERIC, "choice", "interval")
# Keys that may not be searched, and why.
_CLOSED = {
    "validation": "it is the scale that trials are compared on",
    "data": "all trials see the same volumes",
    "tracking": "it does not change a result",
    "tuning": "it describes the search itself",
    "resources": "it does not change a result, and concurrency is derived from it",
    "name": "it names the run",
    "output": "it names the run",
    "schedule.total_steps": "it is the budget that every trial has",
}


class _Absent(Enum):
    """No value. An enum member keeps its identity in other processes and after pickling."""

    ABSENT = "absent"


class SpaceError(ValueError):
    """An invalid search space. The message names the key, the value and the remedy."""


@dataclass(frozen=True)
class Space:
    """One searched key. A search stores the repr and compares it when it resumes, so fields and repr must not change.
    options: the ends of a range, or the choices; when: (other key, its values under which this one is searched).
    """

    key: str
    kind: str
    options: tuple[Any, ...]
    fixed: Any = _Absent.ABSENT
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def has_fixed(self) -> bool:
        return self.fixed is not _Absent.ABSENT

    @property
    def names(self) -> tuple[str, ...]:
        """The sampler's parameter names: the key, or for an interval its lower end and its share of the rest."""
        return (f"{self.key}.low", f"{self.key}.reach") if self.kind == "interval" else (self.key,)

    def suggest(self, trial: Any) -> Any:
        """Draw the value from an `optuna.Trial`; the two ends of an interval are ordered."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.key, self.options)
        low, high = self.options
        if self.kind == "interval":
            bottom = trial.suggest_float(self.names[0], low, high)
            reach = trial.suggest_float(self.names[1], 0.0, 1.0)
            return [bottom, min(high, bottom + reach * (high - bottom))]
        if self.kind in ("int", "log_int"):
            return trial.suggest_int(self.key, low, high, log=self.kind == "log_int")
        return trial.suggest_float(self.key, low, high, log=self.kind == "log_uniform")

    def parameters(self, value: Any) -> dict[str, Any]:
        """The sampler's parameters for `value`. Raises SpaceError for a value outside the space."""
        if self.kind == "choice":
            if value in self.options:
                return {self.key: value}
        elif self.kind == "interval":
            ends = [value, value] if _number(value) else list(value) if isinstance(value, list | tuple) else []
            low, high = self.options
            if len(ends) == 2 and all(map(_number, ends)) and low <= ends[0] <= ends[1] <= high:
                reach = (ends[1] - ends[0]) / (high - ends[0]) if ends[0] < high else 0.0
                return {self.names[0]: float(ends[0]), self.names[1]: float(reach)}
        elif _number(value) and self.options[0] <= value <= self.options[1]:
            if "int" not in self.kind:
                return {self.key: float(value)}
            if float(value).is_integer():
                return {self.key: int(value)}
        raise SpaceError(
            f"{self.key} = {value!r} lies outside of its space, {self.kind} {list(self.options)}; widen it"
        )

    def grid(self, points: int) -> list[dict[str, Any]]:
        """Sampler parameters of the grid: `points` values per numeric range with both ends, or every choice."""
        if self.kind == "choice":
            return [{self.key: option} for option in self.options]
        low, high = self.options
        share = [i / (points - 1) for i in range(points)]
        if self.kind == "interval":
            lower = [low + s * (high - low) for s in share[:-1]]
            pairs = [(bottom, reach) for bottom in lower for reach in share] + [(high, 0.0)]
            return [dict(zip(self.names, pair, strict=True)) for pair in pairs]
        log = self.kind.startswith("log")
        values = [low * (high / low) ** s if log else low + s * (high - low) for s in share]
        values[-1] = high
        return [{self.key: v} for v in (sorted({round(v) for v in values}) if "int" in self.kind else values)]

    def grid_count(self, points: int) -> int:
        return points * (points - 1) + 1 if self.kind == "interval" else len(self.grid(points))


def active(space: Space, value_of: Mapping[str, Any]) -> bool:
    return all(value_of.get(key) in values for key, values in space.when)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        k: v for name, child in node.items() for k, v in flat(child, f"{prefix}.{name}" if prefix else name).items()
    }


def take_spaces(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Space]]:
    """An experiment's mapping with fixed values in place of spaces, and the spaces by dotted key. A space comes after
    those that its `when` names. Raises SpaceError naming the key.
    """
    closed = deepcopy(dict(raw))
    spaces = {space.key: space for space in _take(closed, "")}
    generator = closed.get("generator")
    if isinstance(generator, dict):
        kind = generator.get("kind", DEFAULT_GENERATOR)
        for space in spaces.values():  # a fixed value of a key that another kind has would be refused
            if space.key.startswith("generator.") and kind not in dict(space.when).get("generator.kind", (kind,)):
                generator.pop(space.key.removeprefix("generator."), None)
    return closed, _ordered(spaces)


def _take(node: dict[str, Any], prefix: str) -> Iterator[Space]:
    for name, value in list(node.items()):
        key = f"{prefix}{name}"
        if not isinstance(value, dict):
            continue
        if not any(kind in value for kind in KINDS) or key == "data.splits":
            yield from _take(value, f"{key}.")
            continue
        space = _parse(key, plain(value))
        if space.has_fixed:
            node[name] = space.fixed
        else:
            del node[name]
        yield space


def _parse(key: str, value: dict[str, Any]) -> Space:
    for part, why in _CLOSED.items():
        if key == part or key.startswith(f"{part}."):
            raise SpaceError(f"{key} = {value!r}: cannot be searched, {why}; give one value")
    kinds = [kind for kind in KINDS if kind in value]
    unknown = sorted(set(value) - {*kinds, "fixed", "when"})
    if len(kinds) != 1 or unknown:
        what = f"unknown {unknown}" if unknown else f"more than one of {kinds}"
        raise SpaceError(f"{key} = {value!r}: {what}; a space is one of {', '.join(KINDS)}, with `fixed` and `when`")
    kind, options = kinds[0], value[kinds[0]]
    if kind == "choice":
        _check_choices(key, options, value)
    else:
        _check_ends(key, kind, options, value)
    when = _conditions(key, value.get("when", {}))
    space = Space(key, kind, tuple(options), value.get("fixed", _Absent.ABSENT), when)
    if space.has_fixed:
        space.parameters(space.fixed)
    return space


def _check_choices(key: str, options: Any, value: dict[str, Any]) -> None:
    plain = isinstance(options, list) and not any(isinstance(option, list | dict) for option in options)
    if not plain or not options or len(set(map(repr, options))) < len(options):
        raise SpaceError(f"{key} = {value!r}: choice takes a list of one or more different plain values")


def _check_ends(key: str, kind: str, options: Any, value: dict[str, Any]) -> None:
    if not isinstance(options, list) or len(options) != 2:
        raise SpaceError(f"{key} = {value!r}: {kind} takes a list of two ends, [low, high]")
    if not all(map(_number, options)):
        raise SpaceError(f"{key} = {value!r}: the ends of {kind} are numbers between -2^63 and 2^63 - 1")
    low, high = options
    if not low < high:
        raise SpaceError(f"{key} = {value!r}: the lower end comes first and the ends differ; use [{high}, {low}]")
    if kind.startswith("log") and low <= 0:
        raise SpaceError(f"{key} = {value!r}: a logarithmic range starts above 0, not at {low}")
    if "int" in kind.split("_") and not all(float(end).is_integer() for end in options):
        raise SpaceError(f"{key} = {value!r}: the ends of {kind} are whole numbers")


def _conditions(key: str, when: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(when, dict):
        raise SpaceError(f"{key}: when = {when!r}; write when: {{other.key: value}} or a list of values")
    return tuple((other, tuple(v) if isinstance(v, list) else (v,)) for other, v in when.items())


def _ordered(spaces: dict[str, Space]) -> dict[str, Space]:
    done: dict[str, Space] = {}
    while len(done) < len(spaces):
        rest = {key: space for key, space in spaces.items() if key not in done}
        ready = {key: space for key, space in rest.items() if not any(other in rest for other, _ in space.when)}
        if not ready:
            raise SpaceError(f"{', '.join(rest)}: the conditions (`when`) form a circle; give one of them no condition")
        done |= ready
    return done


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**63) <= value < 2**63
