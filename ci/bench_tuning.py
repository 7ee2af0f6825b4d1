"""Finished searches in one table: their cost, their best figures, and after how many trials.

    python ci/bench_tuning.py OUTPUT/NAME-search ...

A search whose only key is `seed` repeats one configuration: its row is the noise of a figure.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import yaml

from mrisr.metrics import METRICS

AFTER = (4, 8, 12)


def row(folder: Path) -> list[str]:
    """Name, trials by state, steps, best validation figure after so many trials, the winner's test figures."""
    settings = yaml.safe_load((folder / "search.yaml").read_text())
    metric = settings["tuning"]["metrics"][0]
    with (folder / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    ends = [trial["state"] for trial in trials]
    steps = sum(int(trial["steps"]) for trial in trials)
    name = f"{folder.name.removesuffix('-search')} ({settings['tuning']['sampler']}, {settings['tuning']['scheduler']})"
    counts = " + ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    figures = [float(t[metric]) if t[metric] and t["state"] != "failed" else None for t in trials]
    if list(settings["space"]) == ["seed"]:
        found = [noise([figure for figure in figures if figure is not None]), "", ""]
    else:
        found = [best_of(figures[:count], metric) if count <= len(figures) else "" for count in AFTER]
    return [name, counts, f"{steps:,}", *found, test_figures(folder)]


def best_of(figures: list[float | None], metric: str) -> str:
    """The best figure of these trials; a failed one has None."""
    known = [figure for figure in figures if figure is not None]
    return f"{(max if METRICS[metric].higher_is_better else min)(known):.3f}" if known else "none"


def noise(figures: list[float]) -> str:
    """Mean and standard deviation of one configuration's figures over seeds; one seed alone has no deviation."""
    if not figures:
        return "all failed"
    spread = f" ± {statistics.stdev(figures):.3f}" if len(figures) > 1 else ""
    plural = "s" if len(figures) > 1 else ""
    each = ", ".join(f"{figure:.3f}" for figure in figures)
    return f"{statistics.mean(figures):.3f}{spread} over {len(figures)} seed{plural} ({each})"


def test_figures(folder: Path) -> str:
    """Mean PSNR on whole test volumes: of the zero-filled input, and of the network that the search registered last."""
    file = max(folder.glob("test-*.csv"), key=lambda path: path.stat().st_mtime)
    with file.open() as opened:
        rows = [entry for entry in csv.DictReader(opened) if entry["region"] == "whole"]
    methods = list(dict.fromkeys(entry["method"] for entry in rows))
    means = {m: statistics.mean(float(entry["psnr"]) for entry in rows if entry["method"] == m) for m in methods}
    return ", ".join(f"{method} {mean:.2f}" for method, mean in means.items())


def main(folders: list[str]) -> None:
    head = ["search", "trials", "steps", *(f"best after {count}" for count in AFTER), "test, whole volume, PSNR"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for folder in folders:
        print("| " + " | ".join(row(Path(folder))) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
