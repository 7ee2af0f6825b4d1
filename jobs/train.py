"""Train, or resume, an experiment: `mrisr train` as an entry point for `ray job submit`."""

import sys
from pathlib import Path

# This folder leads sys.path while the script runs; its files must not stand in for packages of the same name.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from mrisr.cli.app import main  # noqa: E402

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
