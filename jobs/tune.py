"""Search an experiment's hyperparameters: `mrisr tune` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("tune")
