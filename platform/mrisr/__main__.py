"""`python -m mrisr` is the `mrisr` command."""

from mrisr.cli.app import main

if __name__ == "__main__":
    main()
