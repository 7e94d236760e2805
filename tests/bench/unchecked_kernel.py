"""The kernel without its authority, to measure against: `python -m tests.bench.unchecked_kernel`, with the kernel's own arguments.

For benchmarks only, and not in the product: who may do what is not looked at, nothing is labelled, nothing is written down. What is left
is what any bus does: frames are authenticated, decoded within limits, checked against the op's schema, routed and answered.
"""

from __future__ import annotations

import sys
from typing import Any

from llmos.kernel import forward, main
from llmos.kernel.audit import Audit
from llmos.kernel.authority import Authority
from llmos.kernel.capability import USER, Capability, Right
from llmos.kernel.flow import Decision, Verdict
from llmos.kernel.labels import BOTTOM, Labels, Source

_ANYTHING = Capability("c0", "", USER, Right("*", "*"), None, "bench", "", ())
_YES = Decision(Verdict.ALLOW, BOTTOM)
_NOWHERE = Source("", "")


def _always(result: Any) -> Any:
    return lambda *_, **__: result


def strip() -> None:
    """Take it out of this process."""
    authority: dict[str, Any] = {
        "check": _ANYTHING, "charge": None, "decide": _YES, "passing": None, "passed": None, "receive": None, "stamp": BOTTOM,
        "scope_values": {}, "refused": None,
    }  # fmt: skip
    labels: dict[str, Any] = {"source": _NOWHERE, "mark": (), "of": BOTTOM}
    for kind, results in ((Authority, authority), (Labels, labels)):
        for name, result in results.items():
            setattr(kind, name, _always(result))
    Audit.append = _always(0)  # type: ignore[method-assign]
    vars(forward)["reply_label"] = _always(BOTTOM)


if __name__ == "__main__":
    strip()
    sys.exit(main.main())
