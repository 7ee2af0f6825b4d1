"""Generator weights in files, read without unpickling: safetensors, and state dicts of public implementations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mrisr.models import build_generator
from mrisr.models.generator import Generator

WEIGHTS, CONFIG = "generator.safetensors", "generator.json"


class TrainedOn(NamedTuple):
    """Hashes of the training volumes (`SubjectRecord.content_hash`). complete: those of all ancestors are included."""

    contents: frozenset[str] = frozenset()
    complete: bool = False

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.contents)).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"contents": sorted(self.contents), "complete": self.complete})

    @classmethod
    def from_json(cls, text: str) -> TrainedOn:
        found = json.loads(text)
        return cls(frozenset(found["contents"]), bool(found["complete"]))


class Weights(NamedTuple):
    """The weights of a file or a model version, on the CPU. config, protocol (of their validation): None if unknown."""

    config: dict[str, Any] | None
    state: dict[str, Tensor]
    trained_on: TrainedOn
    protocol: str | None = None


def trained_generator(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Generator:
    """A generator with these weights, on the CPU and in eval mode. Raises ValueError if they do not fit config."""
    generator = build_generator(config)
    generator.load_weights({name: value.detach().cpu() for name, value in state.items()})
    return generator.eval().requires_grad_(False)


def write_weights(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    trained_on: TrainedOn | None = None,
    protocol: str | None = None,
) -> tuple[Path, Path]:
    """Write generator.safetensors (all other data in its header) and generator.json. Returns both paths."""
    weights, description = folder / WEIGHTS, folder / CONFIG
    weights.write_bytes(serialised(config, state, trained_on, protocol))
    description.write_text(_text(config) + "\n")
    return weights, description


def serialised(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    trained_on: TrainedOn | None = None,
    protocol: str | None = None,
) -> bytes:
    """A safetensors file of these weights. Its header holds the generator's configuration and what else is given."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header = {"generator_config": _text(config), "protocol": protocol}
    header["trained_on"] = None if trained_on is None else trained_on.to_json()
    return save(tensors, metadata={key: text for key, text in header.items() if text is not None})


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), indent=1, sort_keys=True)


def read_weights_file(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read a weights file. Returns (generator_config, or None if the file has none; state dict on the CPU).

    The format is recognised by the content, not by the name. safetensors: the configuration comes from the header, or
    from generator.json in the same folder. torch.save, zip or legacy: a state dict, or a dict with one under
    `state_dict` or `model_state_dict`; only tensors are unpickled. Raises ValueError and FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            return _read_safetensors(path)
        if not (head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05")):
            raise ValueError(f"{path}: damaged, or not a weights file; give one of safetensors or of torch.save")
        content = _unpickled(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); give a readable weights file") from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors")
    return None, dict(content)


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # torch.load would use the file name
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise any error
        raise ValueError(
            f"{path}: damaged, or not a file of plain tensors, and nothing else is unpickled from it; "
            f"save the network's state_dict() with torch.save ({next(iter(str(error).splitlines()), '')})"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("generator_config")
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
    beside = path.with_name(CONFIG)
    if header is None and beside.is_file():
        header = beside.read_text()
    try:
        config = None if header is None else json.loads(header)
    except (ValueError, RecursionError):
        config = header
    if header is not None and not isinstance(config, dict):
        raise ValueError(f"{path}: its generator's configuration is damaged ({header[:40]!r}); save the weights again")
    return config, state


def read_trained_on(path: Path) -> TrainedOn:
    """The volumes that a file's weights were trained on, from its header; incomplete for files of other programs."""
    try:
        return TrainedOn.from_json(_header(path)["trained_on"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return TrainedOn()


def read_protocol(path: Path) -> str | None:
    """The protocol that a file's weights were validated under, from its header; None for files of other programs."""
    return _header(path).get("protocol")


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
