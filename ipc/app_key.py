"""An app's key: what a program from outside proves itself with, in a file of its own that only its user can read."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from llmos.ipc.errors import Code, OpError

KEY_VARIABLE = "LLMOS_APP_KEY"
"""Environment variable that names the key file of the program it is set for."""
_SCHEME = "ipc://"
_MAX_FILE = 8192
_HINT = "make a new one with `llmosctl app add NAME --allow CAPABILITY`"


@dataclass(frozen=True)
class AppKey:
    """The keys are Z85, 40 characters each; `address` is a ZeroMQ endpoint."""

    name: str
    address: str
    server_key: str
    public: str
    secret: str

    def __repr__(self) -> str:
        return f"AppKey({self.name!r})"  # a secret has no place in a traceback or a log

    @property
    def path(self) -> Path:
        """Of the gate's socket. Raises `OpError(INVALID_ARGUMENT)` for an endpoint that is none of this machine's."""
        if not self.address.startswith(f"{_SCHEME}/"):
            raise OpError(Code.INVALID_ARGUMENT, f"the address of a key must begin with {_SCHEME}/", _HINT)
        return Path(self.address.removeprefix(_SCHEME))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises `OpError`: `NOT_FOUND`, `DENIED` for a file that others could have read, `INVALID_ARGUMENT`."""
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_FILE:
                    raise OpError(Code.INVALID_ARGUMENT, f"{path} is no key file", _HINT)
                if about.st_uid != os.geteuid() or about.st_mode & 0o077:
                    raise OpError(
                        Code.DENIED, f"others can read the key in {path}", f"chmod 600 {path}, and do not share it"
                    )
                found = tomllib.loads(file.read().decode())
        except FileNotFoundError:
            raise OpError(Code.NOT_FOUND, f"there is no key file {path}", _HINT) from None
        except OSError as error:
            raise OpError(Code.DENIED, f"{path}: {error.strerror}", _HINT) from None
        except ValueError as error:
            raise OpError(Code.INVALID_ARGUMENT, f"{path}: {error}", _HINT) from None
        for field in fields(cls):
            value = found.get(field.name)
            if not isinstance(value, str) or (field.name not in ("name", "address") and len(value) != 40):
                raise OpError(Code.INVALID_ARGUMENT, f"{path}: {field.name} is missing, or is none", _HINT)
        return cls(**{field.name: found[field.name] for field in fields(cls)})

    @classmethod
    def of_environment(cls) -> Self | None:
        """The key that `LLMOS_APP_KEY` names, if it is set. Raises what `load` does."""
        path = os.environ.get(KEY_VARIABLE)
        return cls.load(Path(path).expanduser()) if path else None

    def save(self, path: Path) -> None:
        """Mode 0600, in a directory made for it where there is none; whole or not at all. Raises `OSError`."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            # a JSON string is a TOML basic string
            file.write("".join(f"{name} = {json.dumps(value)}\n" for name, value in asdict(self).items()))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
