"""One YAML file describes an experiment; every key has a meaning, a unit and a default."""

from mrisr.config.loading import ConfigError, load_experiment
from mrisr.config.schema import Experiment

__all__ = ["ConfigError", "Experiment", "load_experiment"]
