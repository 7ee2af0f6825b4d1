"""The `mrisr` command: its options and one function per verb. It may import every other room."""
