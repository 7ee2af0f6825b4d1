"""A store is split once, at conversion: what an experiment says about splits has to be what its store has."""

from __future__ import annotations

from collections.abc import Mapping

from mrisr.config import ConfigError, Experiment
from voxelstore import SplitRule, VolumeStore
from voxelstore.splits import check_splits

DEFAULT = SplitRule({"train": 0.8, "validation": 0.1, "test": 0.1}, 0)


def agreed_rule(store: VolumeStore | None, splits: Mapping[str, float] | None, seed: int | None) -> SplitRule:
    """What to split by: what is asked for; where nothing is (None), what the store has; in a new one, the default.

    Raises ConfigError if another rule is asked for than the store was split by: nobody moves any more, so that the
    store would not be what the configuration, which is tracked with every run, says. ValueError for an unusable one.
    """
    known = None if store is None else store.rule
    base = known or DEFAULT
    wanted = SplitRule(base.splits if splits is None else dict(splits), base.seed if seed is None else seed)
    check_splits(wanted.splits)
    if store is not None and known is not None and wanted != known:
        raise ConfigError(
            f"{wanted}: the store {store.path} was split by {known} when it was converted. Leave both keys out or give "
            "these values, to use it as it is; or convert the volumes into another store: "
            f"mrisr convert FOLDER data.store=... {wanted}"
        )
    return known or wanted


def settle_splits(experiment: Experiment, store: VolumeStore) -> Experiment:
    """The experiment with the splits that its store has, so that what is tracked is true. Raises ConfigError."""
    rule = agreed_rule(store, experiment.data.splits, experiment.data.split_seed)
    if store.rule is None:
        return experiment
    return experiment.changed({"data.splits": rule.splits, "data.split_seed": rule.seed})
