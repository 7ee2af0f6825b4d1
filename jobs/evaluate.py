"""Evaluate a registered model on whole volumes: `mrisr evaluate` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("evaluate")
