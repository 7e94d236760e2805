"""The Hugging Face hub as its plain JSON API offers it: what a revision of a repository holds, and where its files are.

Everything it answers is a stranger's word: sizes and names are checked before they are used, answers are bounded, and nothing
but the token's own origin ever sees the token.

Source: https://huggingface.co/docs/hub/api, the environment variables of
https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables, and
https://github.com/huggingface/huggingface_hub (`X-Error-Code`, the `lfs` field of a tree's entries, pages by `Link`).
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from llmos.ipc.errors import Code
from llmos.userland.models.download import Checksum, wanted_wait
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Network, Settings, reason, without_secrets

ENDPOINT = "https://huggingface.co"
ASKS = 4
"""Times that a list is asked for before giving up."""
ANSWER_BYTES, ANSWER_S = 16 << 20, 60.0
"""The most of one answer of the API, and the longest it may take."""
PAGES = 50
"""Pages of a list, of 1,000 files each."""
FILES = 50_000
"""Files of a list, however it is cut into pages."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,1000}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Where the hub is, who asks, and whether it may be asked at all."""

    endpoint: str = ENDPOINT
    token: str | None = field(default=None, repr=False)
    offline: bool = False


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a revision: its path in the repository, its bytes, and what it has to hash to."""

    path: str
    size: int
    checksum: Checksum

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A revision of a repository, fixed: the same commit is the same files.

    Attributes:
        license: as the repository's card names it; None when it does not.
        files: by path.
    """

    repository: str
    commit: str
    license: str | None
    files: Mapping[str, RemoteFile]


def read_hub_settings(environ: Mapping[str, str] = os.environ) -> HubSettings:
    """`HF_ENDPOINT`, `HF_HUB_OFFLINE`, and the token from `HF_TOKEN` or the file where `hf auth login` puts it.

    Raises `ModelError` INVALID_ARGUMENT for a setting that cannot be used; a token is never repeated.
    """
    endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        raise ModelError(Code.INVALID_ARGUMENT, f"HF_ENDPOINT is no http or https address: {without_secrets(endpoint)}")
    offline = (environ.get("HF_HUB_OFFLINE") or "").lower() in _TRUE
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or _token_file(environ)
    token = token.strip()
    if token and not _TOKEN.fullmatch(token):
        raise ModelError(
            Code.INVALID_ARGUMENT, "the hub's token has characters that no token has", "check HF_TOKEN, or log in again"
        )
    return HubSettings(endpoint, token or None, offline)


def _token_file(environ: Mapping[str, str]) -> str:
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    file = Path(environ.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
    try:
        with file.open(encoding="ascii", errors="replace") as stream:
            return stream.read(2000)
    except OSError:
        return ""


class HubNetwork(Network):
    """Opens the hub's addresses, with the token for its own origin and for no other."""

    called = "the hub"

    def __init__(self, settings: Settings, hub: HubSettings) -> None:
        super().__init__(settings, _Redirects())
        self._hub = hub

    def credentials(self, url: str) -> str | None:
        """The token, encrypted on its way or not leaving this machine."""
        parts = urlsplit(url)
        private = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
        if self._hub.token is not None and private and _origin(url) == _origin(self._hub.endpoint):
            return f"Bearer {self._hub.token}"
        return super().credentials(url)

    def refusal(self, url: str, error: urllib.error.HTTPError) -> ModelError | None:
        """The hub says by `X-Error-Code` what is missing; for what it hides from strangers it says 401."""
        said = f"{without_secrets(url)}: {error.code} {error.reason}"
        kind = error.headers.get("X-Error-Code", "")
        elsewhere = _origin(error.url) != _origin(self._hub.endpoint)
        if error.code not in (401, 403, 404, 407, 410) or (elsewhere and error.code in (401, 403)):
            return None  # a storage's signed address may have expired: the next try gets another
        if error.code == 407:
            return ModelError(Code.UNAVAILABLE, said, "check the proxy's name and password (HTTPS_PROXY)")
        if kind == "GatedRepo":
            hint = "accept its conditions on the model's page, then set HF_TOKEN to a token that may read it"
            return ModelError(Code.UNAVAILABLE, f"{said}: its owner gives it only to those who accept conditions", hint)
        if kind == "RevisionNotFound":
            return ModelError(
                Code.NOT_FOUND, said, "there is no such revision: name a branch, a tag or a commit after @"
            )
        if error.code in (401, 403):
            hint = "check the name" + (
                "; a private model needs HF_TOKEN, over https"
                if self._hub.token is None
                else ", and the rights of HF_TOKEN"
            )
            return ModelError(Code.UNAVAILABLE, f"{said}: there is no such model, or it is not for everybody", hint)
        return ModelError(Code.NOT_FOUND, said, "check the name: hf:OWNER/REPO[/SUBFOLDER][@REVISION]")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never out of encryption, and takes the credentials along within one origin only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        schemes = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            fp.close()
            raise ModelError(Code.UNAVAILABLE, f"the hub redirects to {without_secrets(newurl)}, which is not followed")
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        credentials = req.get_header("Authorization")
        if followed is not None and credentials is not None and _origin(newurl) == _origin(req.full_url):
            followed.add_unredirected_header("Authorization", credentials)
        return followed


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class Hub:
    """The API of one hub.

    Raises, everywhere: `ModelError` NOT_FOUND, UNAVAILABLE (offline, no network, not for everybody, an answer that is none).
    """

    def __init__(self, hub: HubSettings, network: Network, sleep: Callable[[float], None] = time.sleep) -> None:
        self._hub = hub
        self._network = network
        self._sleep = sleep

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        """What `revision` of `repository` is now; of its default branch without one. Entries that are of no use are left out."""
        if self._hub.offline:
            hint = "unset it, or import a file at hand: llmosctl model import FILE.gguf"
            raise ModelError(Code.UNAVAILABLE, "HF_HUB_OFFLINE is set: the hub is not asked", hint)
        base = f"{self._hub.endpoint}/api/models/{repository}"
        said, _ = self._ask(f"{base}/revision/{quote(revision, safe='')}" if revision else base)
        commit = said.get("sha") if isinstance(said, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._nonsense(base, "no commit")
        files: dict[str, RemoteFile] = {}
        for entry in self._entries(f"{base}/tree/{commit}?recursive=true&expand=false"):
            file = _file(entry)
            if file is not None and files.setdefault(file.path, file) != file:
                raise self._nonsense(base, f"{file.path} twice")
        return Snapshot(repository, commit, _license(said), files)

    def address(self, snapshot: Snapshot, file: RemoteFile) -> str:
        """Where a file can be fetched."""
        return f"{self._hub.endpoint}/{snapshot.repository}/resolve/{snapshot.commit}/{quote(file.path)}"

    def _entries(self, url: str) -> Iterator[Any]:
        left = FILES
        for _ in range(PAGES):
            page, following = self._ask(url)
            if not isinstance(page, list):
                raise self._nonsense(url, "no list of files")
            left -= len(page)
            if left < 0:
                raise self._nonsense(url, f"more than {FILES} files")
            yield from page
            if following is None:
                return
            url = urljoin(url, following)
            if _origin(url) != _origin(self._hub.endpoint):
                raise self._nonsense(url, "the next page is elsewhere")
        raise self._nonsense(url, f"more than {PAGES} pages of files")

    def _ask(self, url: str) -> tuple[Any, str | None]:
        """One JSON document, and the address of the next page."""
        trouble = ""
        for attempt in range(ASKS):
            wait = 0.0
            try:
                with self._network.open(url, {"Accept": "application/json"}) as response:
                    return json.loads(_read(response)), _next_page(response)
            except urllib.error.HTTPError as error:
                error.close()
                final = self._network.refusal(url, error)
                if final is not None:
                    raise final from error
                trouble, wait = f"{error.code} {error.reason}", wanted_wait(error)
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                trouble = reason(error)
            if attempt < ASKS - 1:
                self._sleep(max(0.5 * 2**attempt, wait))
        hint = "check the network, HTTPS_PROXY and HF_ENDPOINT; a limit on requests is higher with HF_TOKEN"
        raise ModelError(Code.UNAVAILABLE, f"the hub cannot be asked, {without_secrets(url)}: {trouble}", hint)

    def _nonsense(self, url: str, what: str) -> ModelError:
        said = f"{without_secrets(url)} answers what no hub answers: {what}"
        return ModelError(Code.UNAVAILABLE, said, "check HF_ENDPOINT: is it a hub, or a proxy's own page?")


def _read(response: HTTPResponse) -> bytes:
    """The body, within bounds. Raises `ValueError`."""
    body, until = bytearray(), time.monotonic() + ANSWER_S
    while piece := response.read1(1 << 16):
        body += piece
        if len(body) > ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > until:
            raise ValueError(f"its answer took longer than {ANSWER_S:.0f} s")
    return bytes(body)


def _next_page(response: HTTPResponse) -> str | None:
    """Source: RFC 8288; the hub sends one link, `<address>; rel="next"`."""
    found = re.fullmatch(r'\s*<([^<>]{1,2000})>\s*;\s*rel="?next"?\s*', response.headers.get("Link", ""))
    return found[1] if found else None


def _file(entry: Any) -> RemoteFile | None:
    if not isinstance(entry, dict) or entry.get("type") != "file" or not isinstance(entry.get("path"), str):
        return None
    if not entry["path"].isprintable():
        return None  # it would be shown, and could command a terminal
    stored = entry.get("lfs")
    size, oid = (
        (stored.get("size"), stored.get("oid")) if isinstance(stored, dict) else (entry.get("size"), entry.get("oid"))
    )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(oid, str):
        return None
    if isinstance(stored, dict):
        return RemoteFile(entry["path"], size, Checksum("sha256", oid)) if _SHA256.fullmatch(oid) else None
    return RemoteFile(entry["path"], size, Checksum("git", oid)) if _COMMIT.fullmatch(oid) else None


def _license(said: Mapping[str, Any]) -> str | None:
    card = said.get("cardData")
    if not isinstance(card, dict):
        return None
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return name[:100] if isinstance(name, str) and name.isprintable() else None
