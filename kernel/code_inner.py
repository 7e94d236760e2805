"""Inside the jail of a program that `code.run` runs: becomes that program. Imports nothing but the interpreter's own.

`python -m llmos.kernel.code_inner IN OUT`: descriptors. From `IN` comes, marshalled, `{source, file, args}`; before it ends, one line goes
to `OUT`: peak memory in KiB, processor time in milliseconds, and whether it ended for want of memory. What becomes of that line is
the program's own doing, and no more is made of it than of its output.
"""

from __future__ import annotations

import atexit
import marshal
import os
import resource
import sys

_WITHOUT_NAME = "<program>"


def main() -> None:
    """Run it, in a `__main__` of its own."""
    told_by, report_to = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(told_by, "rb") as stream:
        told = marshal.load(stream)  # noqa: S302  (from the kernel, and the jail is closed)
    os.set_inheritable(report_to, False)
    short_of_memory = False

    def report() -> None:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = max(one.ru_maxrss for one in usage)
        spent = sum(one.ru_utime + one.ru_stime for one in usage)
        try:
            os.write(report_to, b"%d %d %d\n" % (peak, spent * 1000, short_of_memory))
        except OSError:
            return  # the program has closed it

    atexit.register(report)
    name = told["file"] or _WITHOUT_NAME
    path = os.path.join(os.getcwd(), name)  # noqa: PTH109, PTH118  (pathlib costs more than all the rest of this)
    if told["file"]:
        sys.path.insert(0, os.path.dirname(path))  # noqa: PTH120
    sys.argv = [name, *told["args"]]
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    for module in [module for module in sys.modules if module.partition(".")[0] == "llmos"]:
        del sys.modules[module]
    program = type(sys)("__main__")
    program.__dict__.update(__builtins__=__builtins__, __file__=path if told["file"] else name)
    sys.modules["__main__"] = program
    try:
        source = told["source"].encode() if told["source"] is not None else _read(path)
        exec(compile(source, name, "exec", dont_inherit=True), program.__dict__)  # noqa: S102  (what the jail is for)
    except MemoryError:
        short_of_memory = True
        _show(told["source"])
        sys.exit(1)
    except Exception:  # noqa: BLE001  (the program's own, which is to look as if nobody were between it and Python)
        _show(told["source"])
        sys.exit(1)


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123
        return stream.read()


def _show(source: str | None) -> None:
    """The traceback, without this file, and with the lines of a program that has none."""
    kind, error, trace = sys.exc_info()
    if kind is None or error is None:
        return
    trace = trace.tb_next if trace is not None else None
    error.__traceback__ = trace
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(kind, error, trace)
        return
    try:
        import linecache
        import traceback

        if source is not None:
            linecache.cache[_WITHOUT_NAME] = (len(source), None, source.splitlines(keepends=True), _WITHOUT_NAME)
        traceback.print_exception(error)
    except (OSError, ImportError, MemoryError):  # the program has left nothing to do it with
        sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    main()
