"""Conditional search spaces (`when`): removes those that an override excludes, and finds impossible conditions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mrisr.config import ConfigError
from mrisr.config.spaces import Space


def without_excluded(
    spaces: dict[str, Space], values: Mapping[str, Any], overridden: Collection[str]
) -> dict[str, Space]:
    """The spaces without those that an override excludes. values: the base value of every key; overridden: keys of
    overrides.

    Example: degradation.kind=truncate excludes a `degradation.mix` that is searched when the kind is `mixed`, and each
    space with a condition on the mix.
    """
    left, gone = {}, set(overridden) - spaces.keys()
    for key, space in spaces.items():
        fixed = [(other, wanted) for other, wanted in space.when if other in gone and other not in left]
        if key in overridden or all(values.get(other) in wanted for other, wanted in fixed):
            left[key] = space
        else:
            gone.add(key)
    return left


def check_conditions(spaces: dict[str, Space], values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a condition on an unknown key, or on a value that its key can never have."""
    for space in spaces.values():
        remedy = f"give {space.key} one value, or mend its `when`"
        for other, wanted in space.when:
            asked = spaces.get(other)
            if asked is None and other not in values:
                raise ConfigError(f"{space.key}: `when` names {other!r}, which is not a key of an experiment")
            if asked is None:
                if values[other] not in wanted:
                    raise ConfigError(
                        f"{space.key}: is searched when {other} is one of {list(wanted)}, but that is "
                        f"{values[other]!r}; {remedy}"
                    )
            elif asked.kind in ("uniform", "log_uniform", "interval"):
                raise ConfigError(
                    f"{space.key}: when {other} is one of {list(wanted)}, but that is drawn from a range of real "
                    f"numbers, {asked.kind} {list(asked.options)}, where no single value comes up; {remedy}, or make "
                    f"{other} a choice"
                )
            elif impossible := [value for value in wanted if not _possible(asked, value)]:
                raise ConfigError(
                    f"{space.key}: when {other} is one of {impossible}, but its space holds "
                    f"{asked.kind} {list(asked.options)} only; {remedy}"
                )


def _possible(space: Space, value: Any) -> bool:
    if space.kind == "choice":
        return value in space.options
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    return whole and space.options[0] <= value <= space.options[1]
