"""Measure the patches per second that this cluster streams: `mrisr bench` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("bench")
