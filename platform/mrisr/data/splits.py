"""A store is split once, at conversion. An experiment with other splits than its store is refused."""

from __future__ import annotations

from mrisr.config import ConfigError, Experiment
from mrisr.config.schema import Data
from voxelstore import SplitRule, VolumeStore
from voxelstore.splits import check_splits

DEFAULT = SplitRule({"train": 0.8, "validation": 0.1, "test": 0.1}, 0)


def agreed_rule(store: VolumeStore | None, data: Data) -> SplitRule:
    """The configured rule; null values come from the store, or are the defaults in a new store.

    Raises ConfigError if the store was split by another rule, ValueError for a wrong sum.
    """
    known = None if store is None else store.rule
    base = known or DEFAULT
    wanted = SplitRule(
        base.splits if data.splits is None else dict(data.splits),
        base.seed if data.split_seed is None else data.split_seed,
    )
    check_splits(wanted.splits)
    if store is not None and known is not None and wanted != known:
        raise ConfigError(
            f"{wanted}: the store {store.path} was split by {known} when it was converted. Leave both keys out or give "
            "these values, to use it as it is; or convert the volumes into another store: "
            f"mrisr convert FOLDER data.store=... {wanted}"
        )
    return known or wanted


def resolve_splits(experiment: Experiment, store: VolumeStore) -> Experiment:
    """The experiment with the splits of its store. Raises ConfigError if it is configured with others."""
    rule = agreed_rule(store, experiment.data)
    if store.rule is None:
        return experiment
    return experiment.changed({"data.splits": rule.splits, "data.split_seed": rule.seed})
