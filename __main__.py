"""`python -m headrace` is the command line, and so is `headrace`; Ctrl-C is heard from here on."""

from .engine.terminal.interrupts import during_imports


def main() -> None:
    """Imports the command line, and runs it."""
    during_imports()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
