"""The model that a user names: a version of the registry, or a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mrisr.config import ConfigError
from mrisr.config.paths import home
from mrisr.models import build_generator
from mrisr.models.generator import Generator
from mrisr.models.weights import trained_generator
from mrisr.tracking import registry
from mrisr.tracking.runs import resolve_uri


class Model(NamedTuple):
    """A generator in evaluation mode on the CPU. The others are those of a registered version.

    protocol: that it was validated by, None for a weights file.
    """

    generator: Generator
    run_id: str | None
    version: str | None
    protocol: str | None = None


def load_model(model: str, tracking_uri: str | None) -> Model:
    """The model behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a weights file.

    A file without a configuration (a state_dict of the public port) is read as the published network.
    Raises ConfigError naming the model and what exists.
    """
    try:
        if model.startswith("models:/"):
            found = registry.load(model, resolve_uri(tracking_uri, home()))
            return Model(found.generator, found.run_id, found.version, found.tags.get(registry.PROTOCOL))
        config, state = registry.load_generator_weights(Path(model).expanduser())
        if config is not None:
            return Model(trained_generator(config, state), None, None)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--model {model}: {error}") from None
    generator = build_generator({})
    try:
        generator.load_reference_state_dict(state)
    except ValueError as error:
        raise ConfigError(
            f"--model {model}: has no configuration, so it was read as the published network, which it is not: "
            f"{error}. Files that `mrisr train` writes have theirs"
        ) from None
    return Model(generator.eval(), None, None)
