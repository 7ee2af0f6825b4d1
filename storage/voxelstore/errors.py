"""What can go wrong with a source file and with a store."""

from __future__ import annotations

from pathlib import Path


class VolumeError(ValueError):
    """A source file that cannot be used: file, value found and remedy. `reason` is one of `REASONS`."""

    REASONS = (
        "unreadable", "truncated", "unsupported", "not-3d", "constant", "not-finite", "too-small", "duplicate",
        "name-clash", "worker-died", "too-large", "unusable",
    )  # fmt: skip

    def __init__(self, path: str | Path, reason: str, message: str) -> None:
        if reason not in self.REASONS:
            raise ValueError(f"reason {reason!r} is not one of {self.REASONS}")
        super().__init__(f"{path}: {message}")
        self.path = str(path)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str, str]]:
        # Exceptions are pickled by their args, which hold the joined text only.
        return type(self), (self.path, self.reason, self.message)


class StoreError(ValueError):
    """A volume store that is missing, of another schema version, or damaged."""
