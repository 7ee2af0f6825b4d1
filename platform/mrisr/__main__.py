"""The `mrisr` command, also as `python -m mrisr`."""

import sys

from mrisr.collector import collect_rarely


def main() -> None:
    try:
        collect_rarely()
        from mrisr.cli.app import main as run  # half a second, of which a third without the line above

        run()
    except KeyboardInterrupt:  # during the imports; the command reports its own
        sys.stderr.write("Error: interrupted before anything began\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
