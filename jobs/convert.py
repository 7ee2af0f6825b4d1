"""Convert a folder of NIfTI volumes to the Zarr store: `mrisr convert` as an entry point for `ray job submit`."""

from mrisr.cli.job import run

if __name__ == "__main__":
    run("convert")
