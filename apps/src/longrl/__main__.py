"""Entry point of `python -m longrl`."""

import sys

from longvideo_reason_data.endings import run_command


def main() -> int:
    """Run the command; see `longrl.cli.main`."""
    return run_command("longrl.cli")


if __name__ == "__main__":
    sys.exit(main())
