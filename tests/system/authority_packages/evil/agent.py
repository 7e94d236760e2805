"""The agent. What the code leaves in `told` is its result; the names it finds are those of `run`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from evil.raw import RawPeer  # type: ignore[import-not-found]  # put there by the test
from llmos.userland.agent import Agent
from llmos.userland.sdk import OpError


def run(agent: Agent) -> dict[str, Any]:
    told: dict[str, Any] = {}
    peers: list[RawPeer] = []

    def call(op: str, args: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
        """What came of it: `{result, label}` or `{error, detail}`; a handle is `kept`, for `$v` in what is told would be a reference."""
        try:
            stream = agent.client.connection.stream(op, args or {}, **how)
            result = stream.finish()
            if "$v" in result:
                result["kept"] = result.pop("$v")
            return {"result": result, "label": stream.label}
        except OpError as error:
            return {"error": error.code.value, "detail": error.detail}

    def kept(path: str) -> dict[str, Any]:
        """A reference to a part of the strangers' letters, of which nothing was read."""
        inbox = call("post.inbox", keep=True)["result"]["kept"]
        return {"$v": call("value.project", {"value": inbox, "path": path})["result"]["kept"]}

    def trusted() -> bool:
        """Whether the kernel takes this for an agent that has read no stranger."""
        return "error" not in call("plan.fix", {"steps": []})

    def peer(*, ready: bool = True) -> RawPeer:
        """A connection in place of the agent's own, which can say what a decent one cannot."""
        peers.append(RawPeer(os.environ["LLMOS_BUS"]))
        peers[-1].hello(os.environ["LLMOS_TOKEN"])
        if ready:
            peers[-1].call("sys.ready")
        return peers[-1]

    names = {"call": call, "kept": kept, "trusted": trusted, "peer": peer, "told": told, "child": agent.args["child"]}
    exec(agent.args["code"], {**names, "os": os, "time": time, "threading": threading})
    if peers:
        peers[-1].call("proc.exit", {"result": told})
        os._exit(0)
    return told
