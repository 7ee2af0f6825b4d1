"""Every key with type, default and meaning, and errors that cite them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from mrisr.config.fields import OneOf
from mrisr.config.networks import Generator
from mrisr.config.values import dump

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(ValueError):
    """An invalid configuration. The message has one line per problem: key, value, remedy."""


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


def fields_of(model: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default as YAML, meaning) of every key of a model or settings dataclass, in file order."""
    for name, kind, default, meaning in _declared(model):
        if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind)):
            yield from fields_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", type_text(kind), _as_yaml(default), meaning
    if issubclass(model, Generator):
        _, settings = next(model.kinds())
        yield from fields_of(settings, prefix)


def _declared(model: Any) -> Iterator[tuple[str, Any, Any, str]]:
    if issubclass(model, BaseModel):
        for name, field in model.model_fields.items():
            kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            yield name, kind, field.default, field.description or ""
    else:
        annotations = get_type_hints(model, include_extras=True)
        for one in fields(model):
            yield one.name, annotations[one.name], one.default, one.metadata.get("description", "")


def type_text(kind: Any) -> str:
    """A type as text for users: `int | null`, `list of psnr | ssim`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((one.choices for one in arguments if isinstance(one, OneOf)), type_text(arguments[0]))
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
    if isinstance(value, str | Path):
        return str(value)
    plain = list(value) if isinstance(value, tuple) else value
    return dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    reference = {key: f"{meaning} (default {default})" for key, _, default, meaning in fields_of(model)}
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("tuple[", "function-")))
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            close = difflib.get_close_matches(key, [*reference, *model.model_fields], n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "`mrisr keys` lists every key"
            yield f"{key} = {problem['input']!r}: unknown key; {hint}"
        elif problem["type"] in ("dataclass_type", "model_type"):
            yield f"{key} = {problem['input']!r}: is a section, not a key; write {key}.KEY=VALUE"
        elif problem["type"] == "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            simple = problem["input"] is None or isinstance(problem["input"], str | int | float | list | tuple | Path)
            yield f"{key} = {problem['input']!r}: {message}" if key and simple else message
        else:
            meaning = f"; the key means: {reference[key]}" if key in reference else ""
            yield f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{meaning}"
