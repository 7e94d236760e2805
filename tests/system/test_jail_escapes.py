"""The escape battery: real processes try to get out of a real jail, and each attempt is shown to work outside of one.

The attempts are in `jail_escapes/`. `make escapes` shows them as a table, as root and as an ordinary user.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmos.kernel.jail import ALL_LAYERS, Layer, Tier, probe
from tests.system.escape_stage import ROOT, escapes, escapes_outside, gets_out, staged
from tests.system.jail_escapes import ATTEMPTS, Stage

pytestmark = [
    pytest.mark.skipif(probe().tier is not Tier.A, reason="this machine cannot build a whole jail"),
    pytest.mark.timeout(600),  # the first test waits for all attempts
]

TELLING = {
    Layer.MOUNTS: "see_that_it_exists connect_hidden_socket learn_the_host_name".split(),
    Layer.LANDLOCK: "signal_victim queue_signal_to_victim run_an_own_program".split(),
    Layer.SECCOMP: "send_udp open_netlink_socket outlive_the_kernel start_a_process".split(),
}
"""For each layer, attempts that it alone holds back on every machine."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """What the attempts are after."""
    with staged(tmp_path_factory.mktemp("escapes").resolve()) as made:
        yield made


@pytest.fixture(scope="module")
def outcomes(stage: Stage) -> dict[str, tuple[bool, bool]]:
    """Whether each attempt gets out of nothing, and out of a whole jail; several at a time."""
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: (escapes_outside(name, stage), gets_out(name, stage)), ATTEMPTS)
        return dict(zip(ATTEMPTS, found, strict=True))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_succeeds_outside_and_fails_in_the_jail(name: str, outcomes: dict[str, tuple[bool, bool]]) -> None:
    """Every attempt works without a jail, so that its failure inside is the jail's doing, and fails inside."""
    attempt = ATTEMPTS[name]
    outside, inside = outcomes[name]
    assert not inside, f"{name} got out of the jail"
    if not outside:
        assert attempt.depends or (attempt.root and not ROOT), f"{name} does not even work outside: it shows nothing"
        pytest.skip("this machine holds it back from everybody; the jail does too")


@pytest.mark.parametrize("layer", Layer)
def test_every_layer_carries_weight(layer: Layer, stage: Stage) -> None:
    """With any one layer taken away some attempts get out: no layer is idle, and the battery would notice its loss."""
    less = ALL_LAYERS - {layer}
    held = [name for name in TELLING[layer] if not escapes(name, stage, less, share_pid=layer is Layer.LANDLOCK)]
    assert not held


def test_the_battery_is_as_large_as_it_says() -> None:
    """At least a hundred ways out are tried."""
    assert len(ATTEMPTS) >= 100
