"""The `tlora` command, also as `python -m tlora`."""

import sys


def main() -> None:
    """Run the command line; an interruption is one line, also while it is being imported."""
    try:
        from tlora.cli.main import app

        app(prog_name="tlora")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
