"""Masking of secrets before anything is printed or stored: by key, in addresses, and in messages of libraries.

An address is parsed with SQLAlchemy's grammar (which covers http), because a password may hold `/`, `@`, `?`, quotes
and spaces: the user ends at the first colon, the password at the last `@` before the query.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from voxelstore.errors import printable

MASK = "***"

_SECRET = r"passw|passphrase|pwd|secret|token|credential|api[-_]?key|access[-_]?key|private[-_]?key"
_SECRET_KEY = re.compile(_SECRET, re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(rf"{_SECRET}|key$|^pass$|^sig$|signature|^auth", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
_ADDRESS = re.compile(r"(?:[A-Za-z][\w+.-]*:)+//")  # jdbc:oracle:// as well
# In a message, an address ends at white space or at the closing partner of the character before it.
_CLOSES = {"'": "'", '"': '"', "`": "`", "(": ")", "[": "]", "{": "}", "<": ">"}
_NEXT_ADDRESS = re.compile(r"(?<=[\s,;|=(\[{<'\"`])[A-Za-z][\w+.-]*://")
# user:password@host without a scheme, as drivers write it. Not models:/NAME@ALIAS and other paths.
_BARE = re.compile(r"(?<![^\s,;|=(\[{<'\"`])(?P<user>[^\s:/\\,;|=()\[\]{}<>'\"`]*):(?P<password>\S*)@(?=[\w\[./-])")
_PATHS = {"models", "runs", "file", "dbfs", "mlflow-artifacts", "mailto"}
# http:/user:password@host, as pathlib writes an address.
_COLLAPSED = re.compile(rf"(?<![\w.+-])(?!(?:{'|'.join(_PATHS)}):)(?P<scheme>[A-Za-z][\w+.-]+:/)(?!/)[^\s/:@]*:.*@")
# password=..., "token": "...", as in libpq's addresses, ODBC's and in printed mappings; not in paths.
_PAIR = re.compile(
    rf"(?<![\w./\\-])(?P<key>[\w.-]*(?:{_SECRET})[\w-]*[\"']?\s*[=:]\s*)(?P<value>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s;&]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"\b(Basic|Bearer)\s+[\w.~+/=-]{6,}")
_QUERY = re.compile(r"\?[^=&/@]+=")
_SHORTEST_WORD = 4  # shorter parts of a password are not looked for in messages: they are parts of words
_known: set[str] = set()


def mask_secrets(value: Any) -> Any:
    """The nested value with `***` for secrets: values of secret keys (password, token, ...), and in addresses. A text
    that begins with an address is treated as one address. Use `mask_message` for prose.
    """
    if isinstance(value, Mapping):
        return {k: MASK if _SECRET_KEY.search(str(k)) and v is not None else mask_secrets(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [mask_secrets(item) for item in value] if isinstance(value, list) else tuple(map(mask_secrets, value))
    if isinstance(value, str):
        found = _ADDRESS.match(value)
        return found.group() + _masked(found.group(), value[found.end() :]) if found else _mask_text(value)
    return value


def mask_message(message: object) -> str:
    """A message or exception without secrets, also where a library quotes a part of a remembered password."""
    return _mask_text(str(message), _without_known)


def remember(address: str) -> None:
    """Store an address' password, so that `mask_message` also finds it, and its parts, outside addresses. Libraries
    quote what they fail to parse: the password `a/b` gives "invalid port: 'a'".
    """
    scheme = _SCHEME.match(address)
    rest = address[scheme.end() :] if scheme else ""
    found = _credentials(rest)
    user, password = (found.user, found.password) if found else ("", "")
    if found is None and not _complete(rest) and not address.startswith("sqlite"):
        user, _, password = rest.partition(":")
    if not password:
        return
    parts = re.split(r"[\s/@:?#]", password)
    words = {password, f"{user}:{re.split('[/?#]', password)[0]}", *parts}
    words |= {form(word) for word in words for form in (unquote, unquote_plus, quote, quote_plus)}
    words |= {b64encode(text.encode()).decode() for text in (f"{user}:{password}", unquote(f"{user}:{password}"))}
    # A word that is visible elsewhere in the address, such as the database's name, is not secret.
    shown = user + (rest[found.end :] if found else "")
    _known.update(word for word in words if len(word) >= _SHORTEST_WORD and word not in shown)


def redact_logs() -> None:
    """Mask the log messages of all libraries in this process, exceptions included, and escape control characters."""
    make = logging.getLogRecordFactory()
    if getattr(make, "masks", False):
        return

    def masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(TypeError, ValueError):  # a message that does not fit its arguments, which logging reports itself
            record.msg, record.args = printable(mask_message(record.getMessage()), keep="\n\t"), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = mask_message(logging.Formatter().formatException(record.exc_info))
        return record

    masked.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(masked)


class _Credentials(NamedTuple):
    """user:password@ at the beginning of an address, without its scheme. end: index behind the `@`."""

    user: str
    password: str
    end: int
    port_like: bool  # what follows the colon could as well be a port and a path with an @ in it


def _credentials(rest: str) -> _Credentials | None:
    user, colon, _ = rest.split("/", 1)[0].partition(":")
    first = rest.find("@", len(user)) if colon and not _is_ipv6(_authority(rest)) else -1
    if first < 0:
        user = _authority(rest).rpartition("@")[0]
        return _Credentials(user, "", len(user) + 1, False) if "@" in _authority(rest) else None
    # A later @ belongs to the password too, unless it is in a part that looks like a query.
    query = _QUERY.search(rest, first)
    at = rest.rfind("@", 0, query.start() if query else len(rest))
    port_like = re.match(r"\d*(?=[/?#])", rest[len(user) + 1 :]) is not None
    return _Credentials(user, rest[len(user) + 1 : at], at + 1, port_like)


def _authority(rest: str) -> str:
    query = _QUERY.search(rest)
    return rest[: query.start() if query else len(rest)].split("/", 1)[0]


def _is_ipv6(head: str) -> bool:
    literal = re.fullmatch(r"(?:[^@]*@)?\[([^\]]*)\](?::\d*)?\W*", head)
    try:
        return literal is not None and bool(ipaddress.IPv6Address(literal[1]))
    except ValueError:
        return False


def _masked(scheme: str, rest: str) -> str:
    """The part of an address after `scheme`, with credentials and the values of secret query keys masked."""
    found = _credentials(rest)
    if found is not None:
        # The host of host:5000/path@x stays visible.
        user = f"{_masked(scheme, found.user)}:" if found.port_like else ""
        return f"{user}{MASK}@{_masked_query(rest[found.end :])}"
    if not _complete(rest) and not scheme.lower().startswith("sqlite"):
        return f"{rest.partition(':')[0]}:{MASK}"
    return _masked_query(rest)


def _complete(rest: str) -> bool:
    """Whether an address could end here. If it was cut inside its password, its port is not a number."""
    port = _authority(rest).partition(":")[2]
    return bool(_credentials(rest)) or _is_ipv6(_authority(rest)) or bool(re.fullmatch(r"\d*(\W*|[;,].*)", port))


def _masked_query(rest: str) -> str:
    place, mark, query = rest.partition("?")
    place = _PAIR.sub(_masked_pair, place)
    return place + mark + "&".join(map(_masked_item, query.split("&"))) if mark else place


def _masked_item(item: str) -> str:
    key, equals, value = item.partition("=")
    if not equals:
        return item
    if _SECRET_IN_QUERY.search(unquote_plus(key)):
        return f"{key}={MASK}"
    plain = unquote_plus(value)
    if mask_secrets(plain) != plain:  # an address, or ODBC's settings, as a value
        return f"{key}={MASK}"
    return f"{key}={MASK}{value[value.rindex('@') :]}" if "@" in value else item


def _mask_text(text: str, mask_word: Any = lambda text: text) -> str:
    """Prose with addresses masked. mask_word: for the text between them."""
    parts, position = [], 0
    while (found := _SCHEME.search(text, position)) is not None:
        end = _end(text, found)
        parts += [mask_word(_mask_prose(text[position : found.start()])), found.group()]
        parts.append(_masked(found.group(), text[found.end() : end]))
        position = end
    return "".join([*parts, mask_word(_mask_prose(text[position:]))])


def _end(text: str, scheme: re.Match[str]) -> int:
    following = _NEXT_ADDRESS.search(text, scheme.end())
    region = text[scheme.end() : following.start() if following else len(text)].split("\n", 1)[0]
    opening = text[scheme.start() - 1] if scheme.start() else ""
    closing = _CLOSES.get(opening)
    quoted = opening in "'\"`" and opening != "" and opening in region
    stops = [i for i, c in enumerate(region) if c == closing or (c.isspace() and not quoted)]
    for stop in [*stops, len(region)]:
        if _complete(region[:stop]):
            return scheme.end() + stop
    return scheme.end() + (stops[0] if stops else len(region))


def _mask_prose(text: str) -> str:
    text = _COLLAPSED.sub(rf"\g<scheme>{MASK}@", _BARE.sub(_masked_bare, text))
    return _AUTHORIZATION.sub(rf"\1 {MASK}", _PAIR.sub(_masked_pair, text))


def _masked_bare(found: re.Match[str]) -> str:
    user, password = found["user"], found["password"]
    path = user.lower() in _PATHS or (len(user) == 1 and password.startswith(("/", "\\")))
    return found.group() if path else f"{MASK}@"


def _masked_pair(found: re.Match[str]) -> str:
    mark = found["value"][0]
    return found["key"] + (f"{mark}{MASK}{mark}" if mark in "'\"" else MASK)


def _without_known(text: str) -> str:
    for word in sorted(_known, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", MASK, text)
    return text
