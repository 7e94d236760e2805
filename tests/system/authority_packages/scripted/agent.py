"""The agent. A step is `{op, args, keep?, cap?, timeout?, spawn?}`; `@2.items.0.from` in it is a part of what step 2 gave.

What was kept is told as `kept`, and `{ref: HANDLE}` in an argument passes it on: `$v` in what it is told or tells would be a reference.
"""

from __future__ import annotations

import time
from typing import Any

from llmos.userland.agent import Agent
from llmos.userland.sdk import OpError


def run(agent: Agent) -> dict[str, Any]:
    done: list[dict[str, Any]] = []
    for step in agent.args["script"]:
        done.append(_run(agent, step, done))
        agent.emit(done=done[-1])
    return {"done": done}


def _run(agent: Agent, step: dict[str, Any], done: list[dict[str, Any]]) -> dict[str, Any]:
    if "sleep" in step:
        time.sleep(step["sleep"])
        return {}
    try:
        step = _filled(step, done)
        stream = agent.client.connection.stream(
            step["op"],
            step.get("args", {}),
            timeout=step.get("timeout"),
            keep=step.get("keep", False),
            cap=step.get("cap", ""),
        )
        result = stream.finish()
        return {"result": {"kept": result.pop("$v"), **result} if "$v" in result else result}
    except OpError as error:
        return {"error": error.code.value, "detail": error.detail}


def _filled(value: Any, done: list[dict[str, Any]]) -> Any:
    if isinstance(value, dict) and value.keys() == {"ref"}:
        return {"$v": _filled(value["ref"], done)}
    if isinstance(value, dict):
        return {key: _filled(item, done) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, done) for item in value]
    if isinstance(value, str) and value.startswith("@"):
        number, *path = value[1:].split(".")
        found: Any = done[int(number)]["result"]
        for part in path:
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found
    return value
