"""The weights that ship with the package: NAME.safetensors with their model card, NAME.md."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
#: What `pretrained` alone means.
DEFAULT = "inplane"


def shipped_weights(reference: str) -> Path | None:
    """The file behind `pretrained` or `pretrained:NAME`; None for a reference to something else.

    Raises ValueError for an unknown name.
    """
    head, _, name = reference.partition(":")
    if head != "pretrained":
        return None
    file = FOLDER / f"{name or DEFAULT}.safetensors"
    if file.parent != FOLDER or not file.is_file():
        names = sorted(each.stem for each in FOLDER.glob("*.safetensors"))
        raise ValueError(f"no weights of that name ship; use pretrained:NAME with one of {', '.join(names)}")
    return file
