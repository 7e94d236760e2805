"""The jail: starts a Python module so confined that hostile code in it can do no more than its policy says.

    report = probe()                                  # once, at boot: what this machine can enforce, by trying
    report.require(Tier.A)                            # JailError with a hint when it cannot
    policy = Policy(read=(sockets,), write=(state,), tier=Tier.A)
    jailed = spawn(policy, "llmos.drivers.host", ["filesystem"], layers=report.layers, pass_fds=(7,), stderr=PIPE)
    jailed.started(timeout=5).pid                     # the pid the gate will see by SO_PEERCRED; blocks
    jailed.terminate(); jailed.wait(2)

`spawn` returns at once; `jailed.fileno()` turns readable when the outcome of the start is known, always before the
first line of the module runs. README.md says what each layer covers, and what none does.
"""

from llmos.kernel.jail.policy import ALL_LAYERS, JailError, Layer, Limits, Policy, Tier
from llmos.kernel.jail.probe import Finding, Report, probe
from llmos.kernel.jail.process import Jailed, Started, spawn
from llmos.kernel.jail.view import is_own, sees

__all__ = [
    "ALL_LAYERS",
    "Finding",
    "JailError",
    "Jailed",
    "Layer",
    "Limits",
    "Policy",
    "Report",
    "Started",
    "Tier",
    "is_own",
    "probe",
    "sees",
    "spawn",
]
