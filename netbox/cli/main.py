"""The entry point: chooses the command, and turns every outcome into an exit code and one line.

Exit codes: the sandbox's own for run, exec, attach and start -a; 125 when netbox failed, 126 and 127 when the command cannot be executed or
is not there (docker-run(1)); 130 after ctrl-c, 128 + n after signal n, 141 when the reader of a pipe went away.

A start is prepared before anything heavy is loaded: the interpreter of the monitor, or of the process of an exec, starts while this process
still imports click.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from netbox.cli.state import State
    from netbox.runtime.helper import Helper

HELPERS = {"run": "monitor", "start": "monitor", "exec": "execute_helper"}
"""Which process a command will want."""
_NO_START = ("--help", "--dry-run", "--version")
INTERNAL_ERROR = 125
INTERRUPTED = 130
BROKEN_PIPE = 141
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Imports make many objects and no garbage: fewer collections save some milliseconds of every start.
_GC_THRESHOLD = 50_000


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwinds like ctrl-c, so that a half-made start is undone."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line of this process and exits with its code."""
    gc.set_threshold(_GC_THRESHOLD)
    code = execute(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = code or BROKEN_PIPE
    # Nothing is left to do: tearing the interpreter down would only cost time.
    os._exit(code)


def execute(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code. Prints errors to stderr, one line each."""
    _open_missing_descriptors()
    helper = _prespawn(arguments)
    from netbox.cli.state import State

    state = State(helper)
    try:
        return _guarded(arguments, state)
    finally:
        state.close()


def _open_missing_descriptors() -> None:
    """Started with stdin, stdout or stderr closed, the first socket would take its number, and become the sandbox's output."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    while null <= 2:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.close(null)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # Python found the descriptor closed
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _prespawn(arguments: Sequence[str]) -> Helper | None:
    """The process that the command line will want, on its way. A wrong guess costs one process that ends at once."""
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command not in HELPERS or os.geteuid() != 0 or any(word in _NO_START for word in arguments):
        return None
    from netbox.errors import NetboxError

    try:
        from netbox.runtime.helper import Helper

        return Helper.start(HELPERS[command])
    except (NetboxError, OSError):
        return None  # the start itself tries again and says what is wrong


def _guarded(arguments: list[str], state: State) -> int:
    from netbox.cli import output
    from netbox.errors import NetboxError

    label = command_label(arguments)
    try:
        _catch_termination()
        code = _dispatch(arguments, state, label)
        sys.stdout.flush()
        return code
    except NetboxError as error:
        state.print_traceback(arguments)
        output.report(label, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated as signal:
        return 128 + signal.number
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the top of the process: whatever it is, the user gets one line
        state.print_traceback(arguments)
        output.report(label, _unexpected(error))
        return INTERNAL_ERROR


def _unexpected(error: Exception) -> str:
    """The line for an exception that nobody turned into an error of netbox."""
    from netbox.errors import host_error

    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
        _silence_stdout()
        return str(host_error("write", str(error.filename or "the output"), error))
    reason = " ".join(str(error).split())
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{detail}; this is a bug; run again with --debug"


def _dispatch(arguments: list[str], state: State, label: str) -> int:
    import click

    from netbox.cli import output
    from netbox.cli.table import cli

    if "_NETBOX_COMPLETE" in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {"obj": state}, "netbox", "_NETBOX_COMPLETE", os.environ["_NETBOX_COMPLETE"])
    try:
        with cli.make_context("netbox", arguments, obj=state) as context:
            result = cli.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else label
        output.report(path, f"{_one_line(error.format_message())}; see '{path} --help'")
        return INTERNAL_ERROR


def _one_line(text: str) -> str:
    """A message of click in this program's manner: one sentence, small letter, a guess in brackets."""
    message = " ".join(text.split()).rstrip(".")
    sentence, separator, guess = message.replace(". (Did", ". Did").partition(". Did you mean ")
    return f"{sentence[:1].lower()}{sentence[1:]}" + (f" (did you mean {guess.rstrip(')')})" if separator else "")


def command_label(arguments: Sequence[str]) -> str:
    """``netbox run``: what the line of an error starts with."""
    words = [word for word in arguments if not word.startswith("-")]
    groups = ("image", "network")
    kept = words[: 2 if words[:1] and words[0] in groups else 1]
    return " ".join(["netbox", *(word for word in kept if word.isidentifier() and word.isascii())])


def _catch_termination() -> None:
    import signal

    def terminate(number: int, _: object) -> None:
        raise Terminated(number)

    handlers: tuple[tuple[int, Callable[[int, object], None]], ...] = ((signal.SIGTERM, terminate), (signal.SIGHUP, terminate))
    for number, handler in handlers:
        # A shell's nohup ignores SIGHUP on purpose: leave that alone.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handler)


def _silence_stdout() -> None:
    """The reader is gone: what is still buffered goes nowhere, or the flush at the end would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    main()
