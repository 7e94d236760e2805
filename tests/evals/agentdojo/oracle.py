"""The sink rule against AgentDojo, in one process: the kernel's own modules decide, no bus and no sandbox.

    python -m tests.evals.agentdojo.oracle [--show]

What the live run (`python -m tests.evals.agentdojo`) must find too.
"""

from __future__ import annotations

import argparse
import sys

from llmos.kernel.flow import Flow, Mode, Request, Verdict
from llmos.kernel.flow import Step as Planned
from llmos.kernel.labels import Label, Labels, reply_label
from tests.evals.agentdojo.manifests import BARE, LABELLED, MANIFESTS, MISLABELLED
from tests.evals.agentdojo.manifests import Labels as Table
from tests.evals.agentdojo.pairs import Play, Step, plays
from tests.evals.agentdojo.program.worlds import MARK, SUITES, Runner
from tests.evals.agentdojo.scoring import HEAD, Outcome, Row, judge

AGENT = "agent#1"
ROWS: dict[str, tuple[Mode, Table]] = {
    "no labels": (Mode.DEFAULT, BARE),
    "strict": (Mode.STRICT, LABELLED),
    "default": (Mode.DEFAULT, LABELLED),
    "default, one manifest mislabelled": (Mode.DEFAULT, MISLABELLED),
}
"""Row → the mode of its tasks, and what its manifests say of results."""


class World:
    """One task in one environment, every call of it decided by the kernel's modules."""

    def __init__(self, play: Play, mode: Mode, table: Table) -> None:
        self.runner = Runner(play.suite, play.before())
        self._flow = Flow(mode)
        self._labels = Labels(lambda: 0.0)
        self._table = table
        self._labels.born(AGENT)
        self._flow.begin(AGENT, play.task.PROMPT)
        if play.plan:
            tags = frozenset(tag for step in play.plan for tag in table[step["function"]][1])
            steps = [Planned(step["function"], step["args"]) for step in play.plan]
            self._flow.fix(AGENT, self._labels.of(AGENT), steps, tags)
        self.approved: list[Step] = []
        self.refused: list[Step] = []

    def call(self, step: Step, *, own: bool) -> str:
        """The result as text; nothing when it was refused."""
        op = step["function"]
        manifest = MANIFESTS[op]
        request = Request(
            holder=AGENT,
            op=op,
            effect=manifest.effect,
            args=step["args"],
            control=manifest.control,
            label=self._labels.of(AGENT),
        )
        decision = self._flow.decide(request)
        if decision.verdict is not Verdict.ALLOW:
            (self.approved if own else self.refused).append(step)
            if not own:
                return ""
        self._flow.commit(AGENT, decision)
        text = self.runner.run(op, step["args"])
        integrity, tags = self._table[op]
        label = reply_label(Label.make(integrity, tags), decision.label)
        self._labels.receive(AGENT, label, self._labels.source(op, op, label))
        return text


def play_one(play: Play, mode: Mode, table: Table) -> Outcome:
    """What the agent of `program.agent` does, without a process."""
    world, orders = World(play, mode, table), play.injected
    for step in play.script:
        if MARK in world.call(step, own=True):
            for order in orders:
                world.call(order, own=False)
            orders = []
    return judge(play, world.runner.calls, world.runner.env, world.approved, world.refused)


def row(name: str) -> Row:
    """A whole row."""
    made = Row(name)
    for suite in SUITES:
        for play in plays(suite):
            made.add(play_one(play, *ROWS[name]))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="The sink rule against AgentDojo's scripted injections.")
    parser.add_argument("--show", action="store_true", help="name the pairs that succeed")
    show = parser.parse_args().show
    print(HEAD)
    for name in ROWS:
        made = row(name)
        print(made)
        for outcome in made.successes if show and name != "no labels" else ():
            print(f"    {outcome.play.name}: {'; '.join(outcome.causes())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
