"""An app that shares no code with llmos: `python plain_app.py KEY_FILE`. It says who it is and listens to a topic.

The key comes from `llmosctl app add notes --allow 'bus.subscribe(topic=proc.*)'`; the rules are in ipc/PROTOCOL.md.
"""

import sys
import tomllib
from typing import Any

import msgpack
import zmq

with open(sys.argv[1], "rb") as file:  # noqa: PTH123
    key = tomllib.load(file)
bus = zmq.Context().socket(zmq.DEALER)
for option, name in (
    (zmq.CURVE_SERVERKEY, "server_key"),
    (zmq.CURVE_PUBLICKEY, "public"),
    (zmq.CURVE_SECRETKEY, "secret"),
):
    bus.set(option, key[name].encode())
bus.linger = 0
bus.connect(key["address"])


def send(number: int, op: str, **args: Any) -> None:
    bus.send_multipart([b"llmos/1", msgpack.packb({"kind": "call", "id": number, "op": op}), msgpack.packb(args)])


send(1, "sys.hello", client="plain")
send(2, "perm.mine")
send(3, "bus.subscribe", topic="proc.*")
answered = 0
while answered == 3 or bus.poll(5000):  # an answer comes at once, an event when there is one
    _greeting, header, body = bus.recv_multipart()
    told, said = msgpack.unpackb(header), msgpack.unpackb(body)
    if not told.get("ok", True):
        sys.exit(f"call {told.get('id', 0)}: {said['code']}: {said['detail']}")
    answered += told["kind"] == "reply"
    print(told.get("topic") or f"answer {told['id']}", said, flush=True)
sys.exit("no answer: the system is down, or the key opens nothing")
