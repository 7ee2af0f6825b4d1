"""The model that a user names: a registered version or a weights file."""

from __future__ import annotations

from typing import NamedTuple

from mrisr.config import ConfigError
from mrisr.config.paths import home
from mrisr.inference.whole_volume import InferenceOptions
from mrisr.models import build_generator
from mrisr.models.generator import Generator
from mrisr.models.weights import TrainedOn, trained_generator
from mrisr.tracking import registry
from mrisr.tracking.runs import resolve_uri


class Model(NamedTuple):
    """A generator in evaluation mode on the CPU. options: with the precision of its validation, or `auto` if that is
    unknown. protocol: of its validation; None if unknown. run_id and version: None for a weights file.
    """

    generator: Generator
    trained_on: TrainedOn
    options: InferenceOptions = InferenceOptions(precision="auto")
    run_id: str | None = None
    version: str | None = None
    protocol: str | None = None


def load_model(model: str, tracking_uri: str | None) -> Model:
    """The model behind `pretrained`, `pretrained:NAME`, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a weights file.

    A file without a configuration (a state_dict of the public port) is read as the published network. Raises
    ConfigError that names the model and what exists.
    """
    try:
        if model.startswith("models:/"):
            found = registry.load(model, resolve_uri(tracking_uri, home()))
            options = InferenceOptions(precision=found.tags.get("precision", "auto"))
            protocol = found.tags.get(registry.PROTOCOL)
            return Model(found.generator, found.trained_on, options, found.run_id, found.version, protocol)
        weights = registry.load_generator_weights(model)
        if weights.config is not None:
            generator = trained_generator(weights.config, weights.state)
            return Model(generator, weights.trained_on, protocol=weights.protocol)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--model {model}: {error}") from None
    generator = build_generator({})
    try:
        generator.load_reference_state_dict(weights.state)
    except ValueError as error:
        raise ConfigError(
            f"--model {model}: has no configuration, so it was read as the published network, which it is not: "
            f"{error}. Files that `mrisr train` writes have theirs"
        ) from None
    return Model(generator.eval(), weights.trained_on)
