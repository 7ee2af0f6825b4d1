"""The `generator` and `critic` sections of an experiment file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from mrisr.config.fields import Positive, Section, one_of
from mrisr.config.values import Unguessed


@dataclass(frozen=True, eq=False)
class _Table(Collection[str]):
    """The names of a table of mrisr.models, which is imported on first use: `mrisr --help` need not import torch."""

    name: str

    @property
    def entries(self) -> dict[str, Any]:
        from mrisr import models

        return getattr(models, self.name)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


GENERATORS, CRITICS = _Table("GENERATORS"), _Table("CRITICS")
DEFAULT_GENERATOR = "mdcsrn"


class Generator(Section):
    """The kind, the keys that all kinds share, and the keys of the kind's own dataclass, which are checked too."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, one_of(GENERATORS, "kind of generator")] = Field(
        DEFAULT_GENERATOR, description="architecture; each kind has keys of its own in this section"
    )
    recompute: bool = Field(
        True, description="recompute activations in the backward pass: half the memory, same numbers"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and register a moving average of the weights, 0.999 say; null: off"
    )
    init_from: str | None = Field(
        None,
        description="start from: pretrained, a state_dict file (.pt, .safetensors), a run folder, models:/NAME@ALIAS",
    )

    @staticmethod
    def kinds() -> Iterator[tuple[str, Any]]:
        """(kind, the dataclass of its own settings), the default kind first."""
        for kind in sorted(GENERATORS, key=lambda kind: kind != DEFAULT_GENERATOR):
            yield kind, GENERATORS.entries[kind].Config

    @property
    def architecture(self) -> dict[str, Any]:
        """The kind and its settings: what `models.build_generator` takes and weights files carry."""
        return {"kind": self.kind, **(self.model_extra or {})}

    def of_kind(self, kind: str, searched: Collection[str]) -> dict[str, Any]:
        """The section for another kind: shared keys, and those set keys that the other kind has as well. searched: keys
        of the section that a search sets, or leaves out under this kind.
        """
        kinds = dict(self.kinds())
        shared = {name: getattr(self, name) for name in type(self).model_fields}
        defaults = asdict(kinds[self.kind]())
        both = {one.name for one in fields(kinds[kind])} & defaults.keys() - {*searched}
        own = self.model_extra or {}
        return shared | {"kind": kind} | {key: own[key] for key in both if own[key] != defaults[key]}

    @model_validator(mode="before")
    @classmethod
    def _check_architecture(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        shared = {key: value for key, value in raw.items() if key in cls.model_fields}
        kind = shared.get("kind", DEFAULT_GENERATOR)
        keys = {name: [one.name for one in fields(settings)] for name, settings in cls.kinds()}
        if not isinstance(kind, str) or kind not in keys:
            return shared  # the field `kind` says what is wrong
        own = {key: value for key, value in raw.items() if key not in shared}
        for key in own.keys() - {*keys[kind]}:
            if others := [name for name in keys if key in keys[name]]:
                raise ValueError(
                    f"generator.{key} = {own[key]!r}: is a key of {' and '.join(others)}, not of generator.kind = "
                    f"{kind!r}, which has {', '.join(keys[kind])}; leave it out"
                )
        settings: Any = Annotated[GENERATORS.entries[kind].Config, Unguessed()]
        return shared | asdict(TypeAdapter(settings).validate_python(own))


class Critic(Section):
    kind: Annotated[str, one_of(CRITICS, "kind of critic")] = Field(
        "separable", description="architecture (design: 4.5)"
    )
    width: Positive = Field(64, description="channels of its first convolution; the others grow with it")
    samples_at_once: Positive | None = Field(
        1, description="patches the critic scores at a time: memory, same numbers; null: a whole forward pass"
    )
    weight_clip: float | None = Field(
        None, gt=0, description="clip convolutions to [-c, c] after each step; then set training.gp_weight=0; null: off"
    )

    def unmet_patch_rule(self, patch_size: int) -> str | None:
        """The critic's rule for patch sizes, such as `a multiple of 16`, if `patch_size` breaks it; else None."""
        return CRITICS.entries[self.kind].unmet_patch_rule(patch_size)
