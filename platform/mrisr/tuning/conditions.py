"""Conditional spaces: which of them an override has closed, and which could never be searched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mrisr.config import ConfigError
from mrisr.config.spaces import Space


def without_closed(
    spaces: dict[str, Space], values: Mapping[str, Any], overridden: Collection[str]
) -> dict[str, Space]:
    """The spaces less those whose condition asks about a key that an override gave one value, and that value rules out.

    values: of all keys where they are not searched; overridden: keys that overrides name. With
    degradation.kind=truncate, a range of `degradation.mix` that is searched where the kind is `mixed` goes too, and
    with it what asks about the mix in turn. A space that an override opens itself stays, for `check_conditions`.
    """
    left, gone = {}, set(overridden) - spaces.keys()
    for key, space in spaces.items():
        asked = [(other, wanted) for other, wanted in space.when if other in gone and other not in left]
        if key in overridden or all(values.get(other) in wanted for other, wanted in asked):
            left[key] = space
        else:
            gone.add(key)
    return left


def check_conditions(spaces: dict[str, Space], values: Mapping[str, Any]) -> None:
    """Raises ConfigError for a condition on what is no key, or on what that key can never be."""
    for space in spaces.values():
        close = f"give {space.key} one value, or mend its `when`"
        for other, wanted in space.when:
            asked = spaces.get(other)
            if asked is None and other not in values:
                raise ConfigError(f"{space.key}: when asks about {other!r}, which is no key of an experiment")
            if asked is None:
                if values[other] not in wanted:
                    raise ConfigError(
                        f"{space.key}: is searched when {other} is one of {list(wanted)}, but that is "
                        f"{values[other]!r}; {close}"
                    )
                continue
            if asked.kind in ("uniform", "log_uniform", "interval"):
                raise ConfigError(
                    f"{space.key}: when {other} is one of {list(wanted)}, but that is drawn from a range of real "
                    f"numbers, {asked.kind} {list(asked.options)}, where no single value comes up; {close}, or make "
                    f"{other} a choice"
                )
            if impossible := [value for value in wanted if not _may_be(asked, value)]:
                raise ConfigError(
                    f"{space.key}: when {other} is one of {impossible}, but its space holds "
                    f"{asked.kind} {list(asked.options)} only; {close}"
                )


def _may_be(space: Space, value: Any) -> bool:
    if space.kind == "choice":
        return value in space.options
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    return whole and space.options[0] <= value <= space.options[1]
