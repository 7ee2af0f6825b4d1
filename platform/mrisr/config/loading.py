"""YAML file + `section.key=value` overrides -> a checked Experiment, or a ConfigError with the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mrisr.config.reference import ConfigError, checked, fields_of, set_key
from mrisr.config.schema import Experiment
from mrisr.config.spaces import KINDS, Space, SpaceError, active, flat, take_spaces
from mrisr.config.values import NULLS, dump, parse
from mrisr.tracking.redaction import mask_secrets

SHIPPED = {file.stem: file for file in sorted((Path(__file__).parent / "shipped").glob("*.yaml"))}


_TEXTS = ("str", "str | null", "Path")


def load_experiment(path: Path | str | None, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, or a shipped one by its name (None: the defaults), apply overrides, and check the
    result.

    Overrides are YAML 1.2, such as `degradation.fraction=[0.3,0.8]`; texts and paths are literal. For a search space
    its `fixed` value is used. Raises ConfigError naming the file, or each wrong key with value and remedy.
    """
    raw, spaces = load_search(path, overrides)
    experiment = checked(Experiment, raw)
    values = flat(experiment.model_dump(mode="json"))
    if still_open := [space.key for space in spaces.values() if not space.has_fixed and active(space, values)]:
        remedy = "is a search space without a `fixed` value; use `mrisr tune`, or set"
        raise ConfigError("\n".join(f"{key}: {remedy} {key}=VALUE" for key in still_open))
    return experiment


def load_search(path: Path | str | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Space]]:
    """The file's mapping with overrides but without search spaces, and the spaces by key. Raises ConfigError."""
    raw = {} if path is None else _read(SHIPPED.get(str(path), Path(path)))
    for item in overrides:
        _override(raw, item)
    try:
        return take_spaces(raw)
    except SpaceError as error:
        raise ConfigError(str(error)) from None


def dump_experiment(experiment: Experiment, without: Sequence[str] = ()) -> str:
    """The resolved experiment as YAML that `load_experiment` reads back to an equal object, `without` some sections.
    Credentials are masked; a `tracking.uri` with credentials becomes null, with a comment.
    """
    plain = experiment.model_dump(mode="json", exclude=set(without))
    shown = mask_secrets(plain)
    head = ""
    if shown["tracking"]["uri"] != plain["tracking"]["uri"]:
        shown["tracking"]["uri"] = None
        head = "# tracking.uri holds credentials, which are not kept here: set MLFLOW_TRACKING_URI instead.\n"
    return head + dump(shown)


def field_reference() -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default as YAML, meaning) of every key, in file order: what `mrisr keys` shows."""
    return fields_of(Experiment)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(SHIPPED)
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file or one that ships: {names}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, not a mapping of keys, such as `seed: 0`")
    return raw


def _override(raw: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"{item!r} is not an override; write section.key=value, e.g. training.gp_weight=5")
    key = key.lstrip("-")
    set_key(raw, key, _typed(key, text))


def _typed(key: str, text: str) -> Any:
    """The value of a text on the command line: the text itself for keys of a text or a path, else parsed as YAML."""
    kind = next((kind for name, kind, *_ in fields_of(Experiment) if name == key), "")
    try:
        if kind not in _TEXTS:
            return parse(text)
        if kind.endswith("| null") and text in NULLS:
            return None
        if text.startswith("{"):  # a search space
            with suppress(yaml.YAMLError):
                if set(KINDS) & (value := parse(text)).keys():
                    return value
        return text
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(
            f"{key}: {text!r} is not a YAML value ({problem}); write a number, a word, [1, 2] or {{a: 1}}"
        ) from None
