"""Save and resume training with torch.distributed.checkpoint (DCP), at any world size and under any strategy.

The entries are listed here by name, from the modules and the optimizers' state. DCP's state_dict helpers would omit the
optimizer state of frozen parameters without an error, and would take a fake step to create missing state (pytorch
issues 192202, 140898).
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta

from mrisr.engine.networks import Networks, average_statistics
from mrisr.engine.progress import METADATA, PROGRESS, REMEDY, CheckpointError, read_progress
from mrisr.engine.sharding import gather_texts, plain, rank, release, world_size
from mrisr.files import write_synced


def save(directory: str | Path, networks: Networks, progress: dict[str, Any]) -> None:
    """Write networks, all optimizers and `progress` (any JSON values). Every rank must call it.

    directory: shared by all ranks, or this rank's own, to be merged later; created if missing. BatchNorm's running
    statistics are averaged over the ranks first. Raises TypeError for a progress that JSON cannot hold.
    """
    text = json.dumps(progress, indent=1, sort_keys=True)
    folder = Path(directory)
    average_statistics(networks)
    with _in_one_process() as no_dist:  # DCP makes the folder, and tells every rank if one cannot
        dcp.save(_entries(networks), storage_writer=FileSystemWriter(folder, overwrite=True), no_dist=no_dist)
    if rank() == 0:
        write_synced(folder / PROGRESS, text)


def load(directory: str | Path, networks: Networks) -> dict[str, Any]:
    """Load what `save` wrote into `networks`, in place, and return the progress. Every rank must call it.

    directory: the checkpoint of all ranks. World size and strategy may differ from those at saving. Raises
    CheckpointError on every rank if files are missing or damaged for one rank, or if the entries or shapes differ from
    those of `networks`.
    """
    folder = Path(directory)
    reader, entries = _PlainReader(folder), _entries(networks)
    progress: dict[str, Any] = {}
    with raised_on_every_rank():
        for name in (METADATA, PROGRESS):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} is no whole checkpoint: {name} is missing; choose a folder that a run finished writing"
                )
        try:
            progress = read_progress(folder)
            _compare(folder, reader.read_metadata(), entries)
        except (OSError, EOFError, json.JSONDecodeError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}; {REMEDY}") from error
    try:
        with _in_one_process() as no_dist:
            dcp.load(entries, storage_reader=reader, no_dist=no_dist)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; {REMEDY}") from error
    except CheckpointException as error:
        causes = {f"rank {number}: {type(cause).__name__} {cause}" for number, (cause, _) in error.failures.items()}
        reason = ", ".join(sorted(causes))
        raise CheckpointError(f"{folder} cannot be read: {reason}; {REMEDY}") from error
    return progress


@contextmanager
def raised_on_every_rank() -> Iterator[None]:
    """Raise one rank's CheckpointError on all ranks. Every rank must enter the block.

    Otherwise the other ranks would wait in the next collective, and Ray returns rank 0's result only.
    """
    own: CheckpointError | None = None
    try:
        yield
    except CheckpointError as error:
        own = error
    texts = gather_texts("" if own is None else str(own))
    if not any(texts):
        return
    problems = [f"rank {number}: {text}" for number, text in enumerate(texts) if text]
    raise CheckpointError(texts[0] if len(set(texts)) == 1 else "; ".join(problems)) from own


@contextmanager
def _in_one_process() -> Iterator[bool]:
    """Whether this is the only rank. In the block, DCP does not warn about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield world_size() == 1


def _entries(networks: Networks) -> dict[str, Tensor]:
    """Every tensor of the training state by name. They share memory with the networks and optimizers."""
    modules: dict[str, nn.Module] = {"generator": networks.generator}
    if networks.critic is not None:
        modules["critic"] = networks.critic
    entries: dict[str, Tensor] = {}
    owners: dict[Tensor, str] = {}
    for part, module in modules.items():
        release(module)
        entries |= {f"{part}.{name}": value for name, value in plain(module).state_dict().items()}
        owners |= {parameter: f"{part}.{name}" for name, parameter in plain(module).named_parameters()}
    entries |= {f"ema.{name}": value for name, value in networks.ema.items()}
    for name, optimizer in networks.optimizers.items():
        for parameter, state in optimizer.state.items():
            entries |= {f"optimizer.{name}.{owners[parameter]}.{key}": value for key, value in state.items()}
    return entries


def _compare(folder: Path, metadata: Metadata, entries: dict[str, Tensor]) -> None:
    """Raise CheckpointError if the checkpoint's names or shapes differ from those of `entries`."""
    saved = {
        name: tuple(entry.size) if hasattr(entry, "size") else None
        for name, entry in metadata.state_dict_metadata.items()
    }
    differences = {
        "missing in it": sorted(entries.keys() - saved.keys()),
        "unknown here": sorted(saved.keys() - entries.keys()),
        "of another shape": [
            f"{name} {saved[name]} instead of {tuple(value.shape)}"
            for name, value in entries.items()
            if name in saved and saved[name] != tuple(value.shape)
        ],
    }
    problems = [f"{len(names)} {what} (first: {', '.join(names[:3])})" for what, names in differences.items() if names]
    if problems:
        raise CheckpointError(
            f"{folder} holds other networks: {'; '.join(problems)}; use the generator and critic "
            "settings of the run that wrote it"
        )


class _MetadataUnpickler(pickle.Unpickler):
    """Reads DCP's metadata, a pickle. It permits only classes that describe tensors and files."""

    _ALLOWED = frozenset(
        [
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata", "TensorProperties",
                "StorageMeta", "_MEM_FORMAT_ENCODING",
            )
        ]
        + [("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")]
        + [("torch", name) for name in ("Size", "float32", "float64", "bfloat16", "int64")]
        + [(module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")]
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata asks for {module}.{name}, which no checkpoint of ours holds")


class _PlainReader(FileSystemReader):
    """Reads a checkpoint without executing code from it. DCP loads tensors with weights_only=True."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"its metadata is a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
