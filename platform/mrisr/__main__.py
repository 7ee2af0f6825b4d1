"""`python -m mrisr` is the `mrisr` command."""

from mrisr.collector import collect_rarely


def main() -> None:
    collect_rarely()
    from mrisr.cli.app import main as run  # half a second, of which a third without the line above

    run()


if __name__ == "__main__":
    main()
