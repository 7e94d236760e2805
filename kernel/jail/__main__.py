"""The jail from the command line, for llmosctl, which must not import the kernel, and for trying things out.

python -m llmos.kernel.jail probe [-o json]
python -m llmos.kernel.jail run [--read PATH]… [--write PATH]… [--env NAME[=VALUE]]… [--network] [--timeout S] -- -m MODULE ARGS…

`run` passes standard input, output and error through and ends with the module's exit status: 124 when its time was
up, 125 when there was no jail for it, 128 + n when signal n ended it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from llmos.kernel.jail.policy import JailError, Limits, Policy, Tier
from llmos.kernel.jail.probe import probe
from llmos.kernel.jail.process import spawn

_TIMED_OUT = 124
_NOT_CLOSED = 125
_USAGE = 2
_PR_SET_PDEATHSIG = 1


def _assignment(text: str) -> tuple[str, str]:
    """`NAME=VALUE`; or `NAME`, whose value in this process's environment nobody sees in the list of processes."""
    name, equals, value = text.partition("=")
    if not name or (not equals and name not in os.environ):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, and no variable that is set")
    return name, value if equals else os.environ[name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmos.kernel.jail", description="Run Python modules in a jail.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("probe", help="what this machine can enforce, by trying")
    show.add_argument("-o", "--output", choices=("table", "json"), default="table")
    run = commands.add_parser("run", help="run a module in a jail")
    run.add_argument("--read", type=Path, action="append", default=[], metavar="PATH", help="may be read")
    run.add_argument(
        "--write", type=Path, action="append", default=[], metavar="PATH", help="may be written; 1st is cwd"
    )
    run.add_argument("--path", type=Path, action="append", default=[], metavar="DIR", help="import from here too")
    run.add_argument("--env", type=_assignment, action="append", default=[], metavar="NAME[=VALUE]")
    run.add_argument("--network", action="store_true", help="keep the host's network")
    run.add_argument("--memory", type=int, default=Limits().address_space, metavar="BYTES", help="of address space")
    run.add_argument("--file-size", type=int, default=Limits().file_size, metavar="BYTES", help="of the largest file")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="kill it after this long")
    run.add_argument("--tier", type=Tier, choices=list(Tier), default=Tier.A, help="the weakest jail acceptable")
    run.add_argument("--die-with-parent", type=int, metavar="PID", help="end when this process, its parent, has")
    run.add_argument("target", nargs=argparse.REMAINDER, metavar="-- -m MODULE ARGS")
    return parser


def main() -> int:
    """Carry out the command line; returns the exit status."""
    options = _parser().parse_args()
    return _probe(options.output) if options.command == "probe" else _run(options)


def _probe(output: str) -> int:
    report = probe()
    if output == "json":
        findings = [asdict(finding) for finding in report.findings]
        print(json.dumps({"tier": report.tier, "layers": sorted(report.layers), "findings": findings}))
    else:
        print(f"tier {report.tier}")
        for finding in report.findings:
            print(f"{finding.layer:<9} {'yes' if finding.works else 'no':<4} {finding.reason}")
            if finding.hint:
                print(f"{'':<14} hint: {finding.hint}")
    return 0


def _run(options: argparse.Namespace) -> int:
    target = options.target[1:] if options.target[:1] == ["--"] else options.target
    if len(target) < 2 or target[0] != "-m":
        print("error[usage]: what to run must be given as -- -m MODULE ARGS…", file=sys.stderr)
        return _USAGE
    if options.die_with_parent is not None and not _tied_to(options.die_with_parent):
        return 128 + signal.SIGKILL
    try:
        report = probe()
        report.require(options.tier)
        policy = Policy(
            read=tuple(path.resolve() for path in options.read),
            write=tuple(path.resolve() for path in options.write),
            path=tuple(path.resolve() for path in options.path),
            env=dict(options.env),
            network=options.network,
            limits=Limits(address_space=options.memory, file_size=options.file_size),
            tier=options.tier,
        )
        jailed = spawn(policy, target[1], target[2:], layers=report.layers, stdin=None)
    except JailError as error:
        return _refused(error)
    try:
        jailed.started(options.timeout)
        status = jailed.wait(options.timeout)
    except JailError as error:
        jailed.wait()
        return _refused(error)
    except (TimeoutError, subprocess.TimeoutExpired):
        print(f"error[timeout]: {target[1]} did not end within {options.timeout:g} s", file=sys.stderr)
        return _TIMED_OUT
    finally:
        jailed.kill()
        jailed.wait()
    return status if status >= 0 else 128 - status


def _tied_to(parent: int) -> bool:
    """Be killed when the parent ends, and the jail with us; False when it has ended already. Source: prctl(2)."""
    if sys.platform == "linux":  # elsewhere the jail outlives a parent that is killed, until its time is up
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


def _refused(error: JailError) -> int:
    print(f"error[jail]: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return _NOT_CLOSED


if __name__ == "__main__":
    sys.exit(main())
