"""The `edgeai` program, and `python -m edgeai`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. It is imported in here, so that a Ctrl-C at the very start ends quietly as well."""
    try:
        from edgeai.interrupts import take_ctrl_c

        take_ctrl_c()
        from edgeai.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
