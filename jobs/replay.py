"""Compute a step again that was not finite: `mrisr replay` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("replay")
