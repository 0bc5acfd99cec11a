"""Where the command line starts: `recengine`, or `python -m recengine`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        from recengine.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("error: the command line needs typer: pip install 'recengine[serve]'")
    app()


if __name__ == "__main__":
    main()
