"""The pipe between the kernel and a gate.

Frames on the pipe (big-endian), to the kernel: `U` — up, the socket is bound; `P` public secret — a fresh CURVE key pair, after the
ordinary gate's `U`, for the kernel to keep as the apps' gate's own; `S` conn uid pid — a new connection; `N` conn pid name — a new
connection of an app; `M` conn header-length header body; `G` conn — gone; `L` conn count — events lost because its mailbox is full.
From the kernel: `M` likewise; `F` count conn… header-length header body — one event to many; `D` conn — drop; to the apps' gate
`A` key name — allow, `R` key — revoke, `K` secret — its own key, upon which it binds its socket. Keys are 40 characters of Z85.
"""

from __future__ import annotations

import struct

SEEN = struct.Struct(">cIII")
MESSAGE = struct.Struct(">cII")
CONN = struct.Struct(">cI")
LOST = struct.Struct(">cII")
NAMED = struct.Struct(">cII")
KEY = 40
"""Characters of a CURVE key in Z85."""
APPS_BASE = 1 << 31
"""Connection numbers of the apps' gate are above it, so that the two never give out the same."""
