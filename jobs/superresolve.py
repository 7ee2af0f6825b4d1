"""Super-resolve NIfTI files with a registered model: `mrisr superresolve` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("superresolve")
