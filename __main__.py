"""`python -m headrace` is the command line, and so is `headrace`; Ctrl-C is heard from here on."""

import gc

from .engine.terminal.interrupts import during_imports

# Allocations, and younger collections, until Python looks for garbage. Its own 700 and 10 are for small programs: what
# torch and we import are a million objects that stay, and looking through them took a fifth of the start.
SELDOM = (10_000, 20, 20)


def main() -> None:
    """Imports the command line, and runs it."""
    during_imports()
    gc.set_threshold(*SELDOM)
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
