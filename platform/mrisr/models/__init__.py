"""The networks by name. A new generator or critic is one new file and one entry in a table here.

It may import degradation and files; outside of `weights` (safetensors), it needs torch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from mrisr.models.critic import WIDTH, Critic, FullCritic, PointwiseCritic, SeparableCritic
from mrisr.models.generator import Generator
from mrisr.models.mdcsrn import MDCSRN
from mrisr.models.rrdb import RRDBNet3D

_Network = TypeVar("_Network")
#: generator.kind -> class. The fields of its Config are the keys `generator.*` of that kind.
GENERATORS: dict[str, type[Generator]] = {"mdcsrn": MDCSRN, "rrdb": RRDBNet3D}
#: The kind in files and configurations that do not name one.
DEFAULT_GENERATOR = "mdcsrn"
#: critic.kind -> class.
CRITICS: dict[str, type[Critic]] = {"full": FullCritic, "pointwise": PointwiseCritic, "separable": SeparableCritic}


def build_generator(config: Mapping[str, Any], *, seed: int = 0) -> Generator:
    """The generator of a configuration such as {"kind": "mdcsrn", "growth_rate": 16}, with seeded weights.

    Missing settings get their defaults; a missing kind means DEFAULT_GENERATOR. Raises ValueError for an unknown kind
    or setting, and for a bad value.
    """
    _, network, settings = _checked(config)
    return network(settings, seed=seed)


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its kind and all defaults. Raises like `build_generator`."""
    kind, _, settings = _checked(config)
    return {"kind": kind, **asdict(settings)}


def _checked(config: Mapping[str, Any]) -> tuple[str, type[Generator], Any]:
    """The kind, the network and its settings. Raises ValueError."""
    values = dict(config)
    kind = values.pop("kind", DEFAULT_GENERATOR)
    network = _entry(GENERATORS, "generator", kind)
    known = [one.name for one in fields(network.Config)]
    for name in values.keys() - {*known}:
        raise ValueError(f"generator.{name} is no setting of {kind}; it has {', '.join(known)}")
    return kind, network, network.Config(**values)


def build_critic(kind: str, patch_size: int = 64, width: int = WIDTH, *, seed: int = 0) -> Critic:
    """The critic of that kind for patches of patch_size^3, with seeded weights. width: channels of its first layer.

    Raises ValueError for an unknown kind, or a patch size that the kind does not support.
    """
    network = _entry(CRITICS, "critic", kind)
    if (rule := network.unmet_patch_rule(patch_size)) is not None:
        raise ValueError(f"patch_size is {patch_size}; the {kind} critic needs {rule}")
    return network(patch_size, width, seed=seed)


def _entry(table: Mapping[str, _Network], section: str, kind: str) -> _Network:
    if not isinstance(kind, str) or kind not in table:
        raise ValueError(f"{section}.kind is {kind!r}; choose one of {', '.join(table)}")
    return table[kind]
