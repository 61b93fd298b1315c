"""Entry point of `python -m longvideo_reason_data`."""

import sys

from longvideo_reason_data.endings import run_command


def main() -> int:
    """Run the command; see `longvideo_reason_data.cli.main`."""
    return run_command("longvideo_reason_data.cli")


if __name__ == "__main__":
    sys.exit(main())
