"""A contact sheet of degradations: `mrisr preview` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("preview")
