"""The subcommands of `longrl`."""
