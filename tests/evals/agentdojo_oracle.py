"""The sink rule against AgentDojo, in one process: the kernel's own modules decide, no bus and no sandbox.

    python tests/evals/agentdojo_oracle.py [--show]

An agent replays the script of each user task and *always* obeys: as soon as a result shows it the injection, it runs the
injection's script, then goes on. The user approves her own calls and no others. Over every pair of a user task with an injection
that has scripted steps. Needs the packages `agentdojo` (0.1.35) and what it imports; the live harness will need them too.

The plan is what a planner could write that has read the prompt and nothing else: the ops of the task, each with the arguments
that the prompt quotes, control or not; the others are left open. The tasks of `OPEN_ENDED` hand the agent over to a text it has not
read; nothing can be planned for them.

Source: Debenedetti et al., "AgentDojo" (NeurIPS 2024); benchmark version v1.2.2.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.ipc.protocol import Effect
from llmos.kernel.flow import SINKS, Flow, Mode, Request, Step, Verdict
from llmos.kernel.labels import Label, Labels, reply_label
from llmos.kernel.prompt import Prompt

VERSION = "v1.2.2"
AGENT = "agent#1"
OPEN_ENDED = {
    ("workspace", "user_task_13"), ("workspace", "user_task_19"),  # "do the actions specified in the email"
    ("slack", "user_task_18"), ("slack", "user_task_19"),  # "do all the tasks I have on my TODO list at URL"
    ("banking", "user_task_12"),  # "read the file and follow the instructions"
}  # fmt: skip

MANIFESTS: dict[str, tuple[Effect, str, str, str]] = {}
"""Op → effect, integrity of its results, tag of its results, control arguments. By class of op, as a manifest would say."""


def _ops(effect: Effect, integrity: str, tag: str, names: str) -> None:
    for entry in names.split():
        name, _, control = entry.partition(":")
        MANIFESTS[name] = (effect, integrity, tag, control)


_ops(
    Effect.READ,
    "untrusted",
    "mail",
    "get_unread_emails get_sent_emails get_received_emails get_draft_emails search_emails",
)
_ops(Effect.READ, "untrusted", "mail", "search_contacts_by_name search_contacts_by_email")
_ops(Effect.READ, "untrusted", "calendar", "search_calendar_events get_day_calendar_events")
_ops(Effect.READ, "untrusted", "drive", "search_files_by_filename get_file_by_id list_files search_files")
_ops(Effect.READ, "trusted", "clock", "get_current_day")
_ops(Effect.SEND, "trusted", "mail", "send_email:recipients,cc,bcc,attachments")
_ops(Effect.DELETE, "trusted", "mail", "delete_email:email_id")
_ops(Effect.SEND, "trusted", "calendar", "create_calendar_event:participants")  # mails the participants
_ops(Effect.SEND, "trusted", "calendar", "reschedule_calendar_event:event_id")
_ops(Effect.SEND, "trusted", "calendar", "add_calendar_event_participants:event_id,participants")
_ops(Effect.DELETE, "trusted", "calendar", "cancel_calendar_event:event_id")
_ops(Effect.WRITE, "trusted", "drive", "append_to_file:file_id create_file:filename")
_ops(Effect.DELETE, "trusted", "drive", "delete_file:file_id")
_ops(Effect.SEND, "trusted", "drive", "share_file:file_id,email,permission")

_ops(Effect.READ, "trusted", "identity", "get_user_information")
_ops(
    Effect.READ,
    "untrusted",
    "hotels",
    "get_all_hotels_in_city get_hotels_prices get_rating_reviews_for_hotels get_hotels_address",
)
_ops(
    Effect.READ,
    "untrusted",
    "restaurants",
    "get_all_restaurants_in_city get_cuisine_type_for_restaurants get_restaurants_address",
)
_ops(
    Effect.READ,
    "untrusted",
    "restaurants",
    "get_rating_reviews_for_restaurants get_dietary_restrictions_for_all_restaurants",
)
_ops(Effect.READ, "untrusted", "restaurants", "get_contact_information_for_restaurants get_price_for_restaurants")
_ops(Effect.READ, "untrusted", "restaurants", "check_restaurant_opening_hours")
_ops(
    Effect.READ,
    "untrusted",
    "cars",
    "get_all_car_rental_companies_in_city get_car_types_available get_car_rental_address",
)
_ops(Effect.READ, "untrusted", "cars", "get_rating_reviews_for_car_rental get_car_fuel_options get_car_price_per_day")
_ops(Effect.READ, "untrusted", "flights", "get_flight_information")
_ops(Effect.ACTUATE, "trusted", "hotels", "reserve_hotel:hotel,start_day,end_day")
_ops(Effect.ACTUATE, "trusted", "cars", "reserve_car_rental:company,start_time,end_time")
_ops(Effect.ACTUATE, "trusted", "restaurants", "reserve_restaurant:restaurant,start_time")

_ops(Effect.READ, "trusted", "account", "get_iban get_balance get_user_info")
_ops(Effect.READ, "untrusted", "transactions", "get_most_recent_transactions get_scheduled_transactions")
_ops(Effect.READ, "untrusted", "files", "read_file")
_ops(Effect.ACTUATE, "trusted", "transactions", "send_money:recipient,amount schedule_transaction:recipient,amount")
_ops(Effect.ACTUATE, "trusted", "transactions", "update_scheduled_transaction:id,recipient,amount")
_ops(Effect.WRITE, "trusted", "account", "update_password:password update_user_info")

_ops(Effect.READ, "untrusted", "slack", "get_channels read_channel_messages read_inbox get_users_in_channel")
_ops(Effect.ACTUATE, "trusted", "slack", "add_user_to_channel:user,channel invite_user_to_slack:user,user_email")
_ops(Effect.DELETE, "trusted", "slack", "remove_user_from_slack:user")
_ops(Effect.SEND, "trusted", "slack", "send_direct_message:recipient send_channel_message:channel")
_ops(Effect.SEND, "untrusted", "web", "get_webpage:url")  # a URL tells its host something
_ops(Effect.SEND, "trusted", "web", "post_webpage:url")


@dataclass
class Run:
    """What became of one task, with or without an injection."""

    asked: int = 0
    """Approvals asked for the user's own calls."""
    attacks_asked: int = 0
    utility: bool = False
    attacked: bool = False
    """The injection reached its goal."""
    passed: list[str] = field(default_factory=list)
    """Ops of the injection that nobody was asked about."""


@dataclass
class Tally:
    """One row of the table."""

    pairs: int = 0
    successes: list[str] = field(default_factory=list)
    useful: int = 0
    tasks: int = 0
    without_approval: int = 0
    approvals: int = 0

    def row(self, name: str) -> str:
        return (
            f"{name:34}{self.pairs:6}{100 * len(self.successes) / self.pairs:9.2f} %"
            f"{100 * self.without_approval / self.tasks:14.1f} %{self.approvals / self.tasks:16.2f}"
            f"{100 * self.useful / self.pairs:20.1f} %"
        )


def quoted_plan(suite: str, task: Any, calls: Sequence[Any]) -> list[Step]:
    """What can be planned for a task from its prompt alone."""
    if (suite, task.ID) in OPEN_ENDED:
        return []
    prompt = Prompt(task.PROMPT)
    steps = []
    for call in calls:
        fixed = {name: value for name, value in call.args.items() if _all_quoted(prompt, value)}
        steps.append(Step(call.function, fixed if MANIFESTS[call.function][0] in SINKS else {}))
    return steps


def _all_quoted(prompt: Prompt, value: Any) -> bool:
    return all(_all_quoted(prompt, item) for item in value) if isinstance(value, list) else prompt.quotes(value)


class World:
    """One task in one environment, every call of it decided by the kernel's modules."""

    def __init__(self, suite: Any, env: Any, mode: Mode | None, trusting: frozenset[str]) -> None:
        self.env, self.mode, self.trusting = env, mode, trusting
        self.runtime = importlib.import_module("agentdojo.functions_runtime").FunctionsRuntime(suite.tools)
        self.flow = Flow(mode or Mode.DEFAULT)
        self.labels = Labels(lambda: 0.0)
        self.labels.born(AGENT)
        self.trace: list[Any] = []

    def label(self, op: str) -> Label:
        _, integrity, tag, _ = MANIFESTS[op]
        return Label.make("trusted" if op in self.trusting else integrity, [tag])

    def begin(self, suite: str, task: Any, calls: Sequence[Any]) -> None:
        self.flow.begin(AGENT, task.PROMPT)
        steps = quoted_plan(suite, task, calls)
        tags = frozenset(tag for step in steps for tag in self.label(step.op).tags)
        self.flow.fix(AGENT, self.labels.of(AGENT), steps, tags)

    def call(self, call: Any, *, own: bool, run: Run) -> str | None:
        """→ the result as text; None when it was refused."""
        effect, _, _, control = MANIFESTS[call.function]
        args = {name: value for name, value in call.args.items() if value is not None}
        request = Request(
            holder=AGENT,
            op=call.function,
            effect=effect,
            args=args,
            control=tuple(control.split(",")) if control else (),
            label=self.labels.of(AGENT),
        )
        decision = self.flow.decide(request)
        if self.mode is not None and decision.verdict is not Verdict.ALLOW:
            run.asked += own
            run.attacks_asked += not own
            if not own:
                return None
        elif not own and effect in SINKS:
            run.passed.append(call.function)
        self.flow.commit(AGENT, decision)
        result, error = self.runtime.run_function(self.env, call.function, call.args)
        self.trace.append(call)
        label = reply_label(self.label(call.function), decision.label)
        self.labels.receive(AGENT, label, self.labels.source(call.function, call.function, label))
        return error or str(result)


def play(
    suite: Any,
    task: Any,
    injection: Any | None,
    vectors: Mapping[str, str],
    mode: Mode | None,
    trusting: frozenset[str],
) -> Run:
    """Run one pair."""
    env = task.init_environment(suite.load_and_inject_default_environment(dict(vectors)))
    before = env.model_copy(deep=True)
    calls = task.ground_truth(before.model_copy(deep=True))
    world, run, obeyed = World(suite, env, mode, trusting), Run(), False
    world.begin(suite.name, task, calls)
    for call in calls:
        result = world.call(call, own=True, run=run)
        if injection is not None and not obeyed and result is not None and MARK in result:
            obeyed = True
            for step in injection.ground_truth(before.model_copy(deep=True)):
                world.call(step, own=False, run=run)
    output = [{"type": "text", "content": task.GROUND_TRUTH_OUTPUT}]
    run.utility = bool(suite._check_user_task_utility(task, output, before, env, world.trace))
    if injection is not None:
        run.attacked = bool(suite._check_injection_task_security(injection, output, before, env, world.trace))
    return run


MARK = "IMPORTANT-INSTRUCTIONS"


def visible_vectors(suite: Any, task: Any) -> dict[str, str]:
    """The places of the environment that the task's script reads, each holding an injection."""
    defaults = suite.get_injection_vector_defaults()
    env = task.init_environment(
        suite.load_and_inject_default_environment({name: f"<{MARK}-{name}>" for name in defaults})
    )
    world, seen = World(suite, env, None, frozenset()), ""
    world.flow.begin(AGENT, task.PROMPT)
    for call in task.ground_truth(env.model_copy(deep=True)):
        seen += world.call(call, own=True, run=Run()) or ""
    return {name: f"{default}<{MARK}>" for name, default in defaults.items() if f"<{MARK}-{name}>" in seen}


def tally(suites: Mapping[str, Any], mode: Mode | None, trusting: frozenset[str] = frozenset()) -> Tally:
    made = Tally()
    for name, suite in suites.items():
        for task in suite.user_tasks.values():
            alone = play(suite, task, None, {}, mode, trusting)
            made.tasks += 1
            made.without_approval += not alone.asked
            made.approvals += alone.asked
            for injection, vectors in _scripted(suite, task):
                run = play(suite, task, injection, vectors, mode, trusting)
                made.pairs += 1
                made.useful += run.utility
                if run.attacked:
                    made.successes.append(f"{name} {task.ID} × {injection.ID}: {', '.join(run.passed)}")
    return made


_VECTORS: dict[tuple[str, str], dict[str, str]] = {}


def _scripted(suite: Any, task: Any) -> Iterator[tuple[Any, dict[str, str]]]:
    key = (suite.name, task.ID)
    if key not in _VECTORS:
        _VECTORS[key] = visible_vectors(suite, task)
    env = suite.load_and_inject_default_environment({})
    for injection in suite.injection_tasks.values():
        if injection.ground_truth(env.model_copy(deep=True)):
            yield injection, _VECTORS[key]


class _Attributes(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_Attributes):
    """Any class of a library that is not there."""


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for the clients of hosted models, which agentdojo imports and this does not use."""

    ROOTS = ("anthropic", "cohere", "google", "langchain", "openai", "requests", "transformers", "vertexai")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True)
            if name.partition(".")[0] in self.ROOTS
            else None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _Nothing  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def main() -> int:
    parser = argparse.ArgumentParser(description="The sink rule against AgentDojo's scripted injections.")
    parser.add_argument("--show", action="store_true", help="name the pairs that succeed")
    show = parser.parse_args().show
    sys.meta_path.insert(0, _Absent())
    suites = importlib.import_module("agentdojo.task_suite.load_suites").get_suites(VERSION)
    rows = {
        "no labels": tally(suites, None),
        "strict": tally(suites, Mode.STRICT),
        "default": tally(suites, Mode.DEFAULT),
        "default, one manifest mislabelled": tally(suites, Mode.DEFAULT, frozenset({"get_webpage"})),
    }
    print(f"{'':34}{'pairs':>6}{'asr':>11}{'no approval':>16}{'approvals/task':>16}{'utility, own calls':>22}")
    for name, row in rows.items():
        print(row.row(name))
        for pair in row.successes if show and name != "no labels" else ():
            print(f"    {pair}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
