"""YAML 1.2 scalars of configuration files and of the command line, and the types that the schema wants.

Numbers are decimal: 1e-5 is a number, 0123 is 123; 12:30, 1_000, hexadecimal and octal notations are texts. `yes` and
`on` are texts. Where the schema wants a text, a number is the text as written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

NULLS = ("", "~", "null", "Null", "NULL")
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_LEAST, _MOST = -(2**63), 2**63 - 1  # 64 bits, as in torch, numpy and SQLite


class _Integer(int):
    text: str


class _Float(float):
    text: str


class _Loader(yaml.SafeLoader):
    """A SafeLoader of YAML 1.2 scalars that refuses a key given twice; YAML would silently use the last one."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a word, not a list or mapping", key_node.start_mark)
            key = key_node.value
            if key in mapping:
                where = key_node.start_mark
                raise ConstructorError(None, None, f"the key {key!r} is given twice; keep one of them", where)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes each text that YAML 1.1 or 1.2 would read as another type."""


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), [*_first, ""])


def _scalar(convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        pattern, _ = _SCALARS[node.tag[18:]]  # checked here too: a tag such as !!int may stand before any text
        try:
            if not re.fullmatch(pattern, node.value):
                raise ValueError
            return convert(loader.construct_scalar(node))
        except ValueError:  # also an integer of thousands of digits
            raise ConstructorError(None, None, f"{node.value[:40]!r} is no {node.tag[18:]}", node.start_mark) from None

    return construct


def _integer(text: str) -> _Integer:
    number = _Integer(text)
    number.text = text
    return number


def _float(text: str) -> _Float:
    number = _Float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    number.text = text
    return number


def _list(loader: _Loader, node: Any) -> list[Any]:
    return loader.construct_sequence(node, deep=True)  # at once: a list or mapping that holds itself is then an error


def _mapping(loader: _Loader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:seq", _list)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _scalar(_integer))
_Loader.add_constructor("tag:yaml.org,2002:float", _scalar(_float))
_Loader.add_constructor("tag:yaml.org,2002:bool", _scalar(lambda text: {"true": True, "false": False}[text.lower()]))


def parse(text: str) -> Any:
    """One YAML document. Raises yaml.YAMLError. Its numbers remember their text, see `plain` and `schema_of_values`."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("lists and mappings lie too deep within each other") from None


def dump(value: Any, **options: Any) -> str:
    """YAML that `parse` and readers of YAML 1.1 read as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, **options)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [plain(child) for child in value]
    return int(value) if isinstance(value, _Integer) else float(value) if isinstance(value, _Float) else value


class Unguessed:
    """Annotation of a type whose values are not converted: see `schema_of_values`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return schema_of_values(handler(source), handler.resolve_ref_schema)


def schema_of_values(schema: Any, resolve: Callable[[Any], Any]) -> Any:
    """A pydantic core schema without conversions: no text or bool for a number, no number for a bool.

    Numbers are finite; integers have 64 bits and may be written as 1e5. A number for a text is the text as written.
    resolve: returns the schema behind a reference.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(schema_of_values(item, resolve) for item in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "definition-ref":  # a dataclass, defined elsewhere
        definition = resolve(schema)
        definition.update(schema_of_values(dict(definition), resolve))
        return schema
    unchanged = {"default", "metadata", "serialization", "function", "expected", "ref", "schema_ref"}
    schema = {key: value if key in unchanged else schema_of_values(value, resolve) for key, value in schema.items()}
    match schema.get("type"):
        case "int":
            bounds = {} if "lt" in schema or "le" in schema else {"le": _MOST}
            bounds |= {} if "gt" in schema or "ge" in schema else {"ge": _LEAST}
            return _before(_whole, {**schema, **bounds, "strict": True})
        case "float":
            return _before(plain, {**schema, "strict": True, "allow_inf_nan": False})
        case "bool":
            return {**schema, "strict": True}
        case "str":
            return _before(_text, schema)
        case "any":
            return _before(plain, schema)
    return schema


def _before(function: Callable[[Any], Any], schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function-before", "function": {"type": "no-info", "function": function}, "schema": schema}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else plain(value)


def _text(value: Any) -> Any:
    return value.text if isinstance(value, _Integer | _Float) else value
