"""The command line's door. It imports nothing heavy before Ctrl-C is looked after."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: what a person can mend is one line and exit code 2."""
    try:
        _main()
    except KeyboardInterrupt:
        sys.exit(130)


def _main() -> None:
    from fluffle.commands.app import app
    from fluffle.schemas.errors import UserError

    try:
        app()
    except UserError as error:
        print(f"fluffle: {error}", file=sys.stderr)
        sys.exit(2)
