"""Generator weights in files, read without unpickling: our safetensors, and state dicts of public implementations."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mrisr.models import build_generator
from mrisr.models.generator import Generator

WEIGHTS, CONFIG = "generator.safetensors", "generator.json"


def trained_generator(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Generator:
    """A generator with these weights, on the CPU and in eval mode. Raises ValueError if they do not fit config."""
    try:
        generator = build_generator(config)
        generator.load_state_dict({name: value.detach().cpu() for name, value in state.items()})
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the weights do not fit the generator {dict(config)}: {error}") from error
    return generator.eval().requires_grad_(False)


def write_weights(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Path, Path]:
    """Write generator.safetensors (with the configuration in its header) and generator.json; returns both paths."""
    weights, description = folder / WEIGHTS, folder / CONFIG
    weights.write_bytes(serialised(config, state))
    description.write_text(_text(config) + "\n")
    return weights, description


def serialised(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of these weights, with the generator's configuration in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    return save(tensors, metadata={"generator_config": _text(config)})


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), indent=1, sort_keys=True)


def read_weights_file(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read a weights file. Returns (generator_config, or None if the file has none; state dict on the CPU).

    .safetensors: the configuration comes from its header, or from generator.json beside it.
    .pt, .pth: a state dict, or a dict with one under `state_dict` or `model_state_dict`; nothing but tensors is
    unpickled. Raises ValueError that names the file and the remedy; FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"{path}: weights are read from .safetensors, .pt or .pth, not from {path.suffix!r}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: not a file of plain tensors, and nothing else is unpickled from it; "
            f"save the network's state_dict() with torch.save ({str(error).splitlines()[0]})"
        ) from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds {type(content).__name__}, expected a state dict of tensors")
    return None, dict(content)


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
    return (None if header is None else json.loads(header)), state
