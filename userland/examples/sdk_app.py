"""The same with the SDK: `LLMOS_APP_KEY=KEY_FILE python sdk_app.py`. It connects by itself, and says clearly when it may not.

The key comes from `llmosctl app add notes --allow 'bus.subscribe(topic=proc.*)'`.
"""

from __future__ import annotations

from llmos.userland.sdk import Client, OpError

if __name__ == "__main__":
    try:
        with Client(name="sdk_app") as client:
            print("I may", client.call("perm.mine")["caps"], flush=True)
            print("I am", client.connection.badge, flush=True)
            for event in client.subscribe("proc.*"):
                missed = f" ({event.lost} missed)" if event.lost else ""
                print(f"{event.topic} {event.data}{missed}", flush=True)
    except OpError as error:
        raise SystemExit(str(error)) from None
