"""The `generator` and `critic` sections of an experiment file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrisr.config.fields import Positive, Section


class Generator(Section):
    growth_rate: Positive = Field(16, description="channels that each dense unit adds")
    blocks: Positive = Field(4, description="dense blocks")
    units: Positive = Field(4, description="dense units per block")
    residual: bool = Field(False, description="output = input + network, last layer initialised to zero")
    recompute: bool = Field(
        True, description="recompute dense blocks in the backward pass: half the memory, same numbers"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and register a moving average of the weights, 0.999 say; null: off"
    )
    init_from: str | None = Field(
        None, description="start from: state_dict file (.pt, .safetensors), run folder, or models:/NAME@ALIAS"
    )


class Critic(Section):
    kind: Literal["full", "pointwise", "separable"] = Field("separable", description="architecture (design: 4.5)")
    samples_at_once: Positive | None = Field(
        1, description="patches the critic scores at a time: memory, same numbers; null: a whole forward pass"
    )
    weight_clip: float | None = Field(
        None, gt=0, description="clip weights to [-c, c] after each step; then set training.gp_weight=0; null: off"
    )
