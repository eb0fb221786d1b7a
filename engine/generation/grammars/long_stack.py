"""Grammars of strangers are compiled on a thread with a stack that none of them can fill.

The library goes down by calling itself from rule to rule, and along the references of a schema. A few thousand of them,
which a request has room for, fill the usual stack of 8 MB, and that ends the process. What it reads has an end
(`MOST_SCHEMA`), and so has the stack it takes, which goes by the length of the text: where address space is limited, a
short grammar still has a thread. The system gives memory for what is used of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ....errors import OptionError

STACK = 1 << 30  # bytes; the deepest grammar that fits a request was seen to take a third
LEAST, EACH = 16 << 20, 4 << 10  # bytes: of any, and for a character, four times as many as in the longest
T = TypeVar("T")
_starting = threading.Lock()  # the size of stacks is the process's, of threads that start


def on_a_long_stack(call: Callable[[], T], length: int) -> T:
    """What a call gives, or raises. length: characters of the grammar that it reads. Raises OptionError where the
    system gives no such thread."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="headrace-grammar", daemon=True)
    with _starting:
        before = threading.stack_size(min(STACK, LEAST + EACH * length))
        try:
            thread.start()
        except RuntimeError:
            raise OptionError(
                "there is no memory for the thread that compiles a grammar: leave it out, or raise the limit of memory"
            ) from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
