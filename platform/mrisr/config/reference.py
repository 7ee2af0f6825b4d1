"""Every key with type, default and meaning, and errors that cite them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from mrisr.config.fields import OneOf

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used. The message has one line per problem: key, value, remedy."""


def checked(model: type[Model], raw: Mapping[str, Any]) -> Model:
    """`raw` as a `model`. Raises ConfigError with one line per wrong key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, error))) from None


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings. Raises ConfigError if a section on the way is not a mapping."""
    *sections, leaf = key.split(".")
    node = raw
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {section} holds {child!r}, not a section; check the key's spelling")
        node = child
    node[leaf] = value


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default as YAML, meaning) of every key, in file order."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, f"{prefix}{name}.")
        else:
            names = next((one for one in field.metadata if isinstance(one, OneOf)), None)
            text = type_text(kind) if names is None else names.choices
            yield f"{prefix}{name}", text, _as_yaml(field.default), field.description or ""


def type_text(kind: Any) -> str:
    """A type as people read it: `int | null`, `list of psnr | ssim`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        names = next((one for one in arguments if isinstance(one, OneOf)), None)
        return type_text(arguments[0]) if names is None else names.choices
    if origin in (Union, UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return f"[{', '.join(map(type_text, arguments))}]"
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _as_yaml(value: Any) -> str:
    """A default as the text that an override takes: null, [0.5, 0.5]."""
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    reference = {key: f"{meaning} (default {default})" for key, _, default, meaning in fields_of(model)}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("tuple[", "function-")))
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, [*reference, *model.model_fields], n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "`mrisr train --help` lists every key"
            yield f"{key} = {problem['input']!r}: unknown key; {hint}"
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            simple = problem["input"] is None or isinstance(problem["input"], str | int | float | list | tuple | Path)
            yield f"{key} = {problem['input']!r}: {message}" if key and simple else message
        else:
            meaning = f"; the key means: {reference[key]}" if key in reference else ""
            yield f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{meaning}"
