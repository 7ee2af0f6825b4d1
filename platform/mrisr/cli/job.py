"""The scripts in jobs/: a verb as the driver of a Ray job, whose working directory is a temporary copy.

Only the standard library is imported before the script's folder has left sys.path.
"""

import os
import sys
from pathlib import Path


def run(verb: str) -> None:
    # sys.path begins with the script's folder: without this, jobs/train.py could be imported as a package `train`.
    folder = Path(sys.argv[0]).resolve().parent
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    from mrisr.cli.app import main
    from mrisr.config.paths import IN_JOB

    os.environ[IN_JOB] = "1"
    main([verb, *sys.argv[1:]])
