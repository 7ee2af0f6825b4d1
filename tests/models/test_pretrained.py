"""The weights that ship: found by name wherever a model is named, with a card, and better than their input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mrisr.config import ConfigError, load_experiment
from mrisr.degradation import PROTOCOLS, degrade, enforce_consistency
from mrisr.inference.model import load_model
from mrisr.inference.whole_volume import superresolve_array
from mrisr.models.pretrained import FOLDER, shipped_weights
from mrisr.tools.demo_cohort import make_cohort
from mrisr.training.warm_start import read_initial_weights
from voxelstore import read_volume

NAMES = sorted(file.stem for file in FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_a_model_with_a_card_and_its_training_volumes(name: str) -> None:
    model = load_model(f"pretrained:{name}", None)
    assert model.trained_on.complete
    assert model.trained_on.contents
    card = (FOLDER / f"{name}.md").read_text()
    assert all(part in card for part in ("Not for diagnosis", "## Data", "## Figures", "## Failures", "Apache-2.0"))


def test_the_names_reach_files() -> None:
    assert shipped_weights("pretrained") == shipped_weights("pretrained:inplane") == FOLDER / "inplane.safetensors"
    assert shipped_weights("models:/hcp@champion") is None
    assert shipped_weights("./pretrained") is None
    for name in ("pretrained:nosuch", "pretrained:../inplane"):
        with pytest.raises(ConfigError, match=rf"--model {name}: no weights of that name ship; .* one of inplane"):
            load_model(name, None)


def test_a_run_starts_from_them() -> None:
    recipe = load_experiment("pretrained", ["generator.init_from=pretrained"])
    weights = read_initial_weights(recipe, "pretrained", "")
    assert weights.trained_on == load_model("pretrained", None).trained_on
    published = load_experiment("hcp", ["generator.init_from=pretrained"])
    with pytest.raises(ConfigError, match=r"generator\.init_from = 'pretrained': its generator is "):
        read_initial_weights(published, "pretrained", "")


def test_they_beat_their_input_on_another_brain(tmp_path: Path) -> None:
    (file,) = make_cohort(tmp_path, 1)
    volume = read_volume(file)
    truth, protocol = volume.intensity().normalise(volume.physical())[40:104], PROTOCOLS["chen2018"]
    low = degrade(truth, protocol)
    high = enforce_consistency(superresolve_array(load_model("pretrained", None).generator, low), low, protocol)
    assert np.square(high - truth).mean() < 0.95 * np.square(low - truth).mean()
