"""The `tlora` command, also as `python -m tlora`."""

import gc
import sys

from tlora.cli.threads import limit_spinning

SHORT = ("estimate", "inspect")
"""Commands that mostly wait for imports, and end before there is garbage to collect."""


def main() -> None:
    """Run the command line; an interruption is one line, also while it is being imported."""
    if any(word in SHORT for word in sys.argv[1:2]):
        gc.disable()  # it looks through what is imported again and again: a seventh of the time
    limit_spinning()
    try:
        from tlora.cli.main import app

        app(prog_name="tlora")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
