"""Train, or resume, an experiment: `mrisr train` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("train")
