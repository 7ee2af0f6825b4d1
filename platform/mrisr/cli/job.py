"""What the scripts in jobs/ do: a verb as the driver of a Ray job, whose working directory is a throw-away copy.

Nothing but the standard library is imported before the script's folder has left sys.path.
"""

import os
import sys
from pathlib import Path


def run(verb: str) -> None:
    # The folder of a running script leads sys.path; jobs/train.py must not stand in for a package `train`.
    folder = Path(sys.argv[0]).resolve().parent
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    from mrisr.cli.app import main
    from mrisr.config.paths import IN_JOB

    os.environ[IN_JOB] = "1"
    main([verb, *sys.argv[1:]])
