"""The whole pipeline on a small cohort: `mrisr demo` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("demo")
