"""`python -m tlora` is the `tlora` command."""

from tlora.cli.main import app

if __name__ == "__main__":
    app(prog_name="tlora")
