"""Masking of secrets, by key and inside addresses, before anything is printed or stored."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_SECRET_KEY = re.compile(r"passw|secret|token|credential|api[-_]?key|access[-_]?key|private[-_]?key", re.IGNORECASE)
_USERINFO = re.compile(r"([a-zA-Z][\w+.-]*://)[^/@\s]*@")
_SECRET_QUERY = re.compile(r"([?&](?:sig|signature|passw\w*|\w*secret|\w*token|\w*key)=)[^&\s]+", re.IGNORECASE)


def mask_secrets(value: Any) -> Any:
    """The same nested value with secrets replaced by `***`: by key (password, token, ...) and inside addresses."""
    if isinstance(value, dict):
        return {k: MASK if _SECRET_KEY.search(str(k)) and v is not None else mask_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item) for item in value]
    if isinstance(value, str):
        return _SECRET_QUERY.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1{MASK}@", value))
    return value
