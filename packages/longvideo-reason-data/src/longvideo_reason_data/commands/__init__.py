"""The subcommands of `longvideo-data`."""
