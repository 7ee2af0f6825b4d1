from __future__ import annotations

from pathlib import Path


def printable(text: object, keep: str = "") -> str:
    """The text with escapes (`\\n`, `\\x1b`) for characters that a terminal acts on; names of files may hold them.

    keep: characters that stay.
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


class VolumeError(ValueError):
    """reason: unreadable, truncated, unsupported, not-3d, constant, not-finite, unusable or too-small."""

    def __init__(self, path: str | Path, reason: str, message: str) -> None:
        super().__init__(f"{printable(path)}: {message}")
        self.path = str(path)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str, str]]:
        # Exceptions are pickled by their args, which hold the joined text only.
        return type(self), (self.path, self.reason, self.message)


class StoreError(ValueError):
    """A volume store that is missing, of another schema version, or damaged."""
