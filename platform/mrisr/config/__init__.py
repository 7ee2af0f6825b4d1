"""One YAML file describes an experiment; every key has a meaning, a unit and a default.

It may import engine, tracking and what lies below them.
"""

from mrisr.config.loading import ConfigError, load_experiment
from mrisr.config.schema import Experiment

__all__ = ["ConfigError", "Experiment", "load_experiment"]
