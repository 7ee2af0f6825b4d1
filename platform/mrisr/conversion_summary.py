"""What a conversion did, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class LeftOut(NamedTuple):
    """A file that is not in the store: its path, a short reason (`VolumeError.reason`), and what to do about it."""

    path: str
    reason: str
    message: str


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did. converted, unchanged, unassigned, forsaken: subjects.

    splits: how many subjects each split has. people: how many people the store's subjects are. forsaken: stored ones
    whose file below the folder is gone, or is not among those that the pattern chooses any more.
    """

    converted: list[str]
    unchanged: list[str]
    left_out: list[LeftOut]
    splits: dict[str, int]
    people: int
    unassigned: list[str] = field(default_factory=list)
    forsaken: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: every file is in the store; 3: something was left out."""
        return 3 if self.left_out else 0

    def lines(self) -> list[str]:
        """The summary as plain lines, one per file left out."""
        counts = f"{len(self.converted)} converted, {len(self.unchanged)} unchanged, {len(self.left_out)} left out"
        shares = ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none"
        lines = [counts, f"splits: {shares}"]
        volumes = sum(self.splits.values()) + len(self.unassigned)
        if self.people == 1 < volumes:
            lines.append(
                f"all {volumes} volumes are taken for one person's, so that they share a split: their paths hold no "
                "sub-LABEL and begin with the same folder. If they are several people's, give that folder itself"
            )
        elif self.people < volumes:
            lines.append(f"{volumes} volumes of {self.people} people; all volumes of a person share a split")
        if self.unassigned:
            few = _few(self.unassigned)
            lines.append(f"{len(self.unassigned)} subjects are in no split, as data.splits asks for fewer: {few}")
        if self.forsaken:
            lines.append(
                f"{len(self.forsaken)} subjects stay in the store though their files are gone or data.pattern leaves "
                f"them out; convert into a new data.store to be without them: {_few(self.forsaken)}"
            )
        return lines + [f"left out ({item.reason}) {item.path}: {item.message}" for item in self.left_out]


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
