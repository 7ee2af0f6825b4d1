"""Repeat a step with a non-finite loss or gradient: `mrisr replay` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("replay")
