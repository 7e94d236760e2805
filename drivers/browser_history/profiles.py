"""Which browsers there are, where they keep their profiles on each platform, and which of them this home has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Family = Literal["firefox", "chromium", "safari"]

DATABASE: dict[Family, str] = {"firefox": "places.sqlite", "chromium": "History", "safari": "History.db"}
_PATTERNS: dict[Family, tuple[str, ...]] = {
    "firefox": ("*/places.sqlite", "Profiles/*/places.sqlite"),
    "chromium": ("*/History", "History"),
    "safari": ("History.db",),
}
_NOT_A_PERSON = frozenset(("System Profile", "Guest Profile", "Snapshots"))


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser and the folders, below a home, that hold its profiles."""

    name: str
    family: Family
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """One history database. `name` is unique in a home: `firefox:default-release`."""

    name: str
    browser: Browser
    database: Path


_MAC = "Library/Application Support"
_LOCAL, _ROAMING = "AppData/Local", "AppData/Roaming"
_FLATPAK = ".var/app"

BROWSERS = (
    Browser(
        "firefox",
        "firefox",
        (
            ".mozilla/firefox",
            ".config/mozilla/firefox",
            "snap/firefox/common/.mozilla/firefox",
            f"{_FLATPAK}/org.mozilla.firefox/.mozilla/firefox",
            f"{_MAC}/Firefox",
            f"{_ROAMING}/Mozilla/Firefox",
        ),
    ),
    Browser(
        "librewolf",
        "firefox",
        (
            ".librewolf",
            f"{_FLATPAK}/io.gitlab.librewolf-community/.librewolf",
            f"{_MAC}/librewolf",
            f"{_ROAMING}/librewolf",
        ),
    ),
    Browser("waterfox", "firefox", (".waterfox",)),
    Browser("zen", "firefox", (".zen", f"{_FLATPAK}/app.zen_browser.zen/.zen", f"{_MAC}/zen", f"{_ROAMING}/zen")),
    Browser("floorp", "firefox", (".floorp",)),
    Browser(
        "chrome",
        "chromium",
        (
            ".config/google-chrome",
            f"{_FLATPAK}/com.google.Chrome/config/google-chrome",
            f"{_MAC}/Google/Chrome",
            f"{_LOCAL}/Google/Chrome/User Data",
        ),
    ),
    Browser("chrome-beta", "chromium", (".config/google-chrome-beta",)),
    Browser("chrome-unstable", "chromium", (".config/google-chrome-unstable",)),
    Browser(
        "chromium",
        "chromium",
        (
            ".config/chromium",
            "snap/chromium/common/chromium",
            f"{_FLATPAK}/org.chromium.Chromium/config/chromium",
            f"{_MAC}/Chromium",
            f"{_LOCAL}/Chromium/User Data",
        ),
    ),
    Browser(
        "edge",
        "chromium",
        (
            ".config/microsoft-edge",
            f"{_FLATPAK}/com.microsoft.Edge/config/microsoft-edge",
            f"{_MAC}/Microsoft Edge",
            f"{_LOCAL}/Microsoft/Edge/User Data",
        ),
    ),
    Browser(
        "brave",
        "chromium",
        (
            ".config/BraveSoftware/Brave-Browser",
            f"{_FLATPAK}/com.brave.Browser/config/BraveSoftware/Brave-Browser",
            f"{_MAC}/BraveSoftware/Brave-Browser",
            f"{_LOCAL}/BraveSoftware/Brave-Browser/User Data",
        ),
    ),
    Browser(
        "vivaldi",
        "chromium",
        (
            ".config/vivaldi",
            f"{_FLATPAK}/com.vivaldi.Vivaldi/config/vivaldi",
            f"{_MAC}/Vivaldi",
            f"{_LOCAL}/Vivaldi/User Data",
        ),
    ),
    Browser(
        "opera",
        "chromium",
        (".config/opera", f"{_MAC}/com.operasoftware.Opera", f"{_ROAMING}/Opera Software/Opera Stable"),
    ),
    Browser("arc", "chromium", (f"{_MAC}/Arc/User Data",)),
    Browser("safari", "safari", ("Library/Safari",)),
)


def find_profiles(home: Path, roots: Sequence[Path]) -> list[Profile]:
    """Every profile with a history below `home` that lies in a granted root, in the order of `BROWSERS`."""
    found = list(_databases(home, roots))
    names = Counter(_name(browser, database) for browser, database in found)
    profiles = []
    for browser, database in found:
        name = _name(browser, database)
        if names[name] > 1:  # two installations (a package and a snap), two folders with one label
            name = f"{browser.name}:{database.parent.relative_to(home).as_posix()}"
        profiles.append(Profile(name, browser, database))
    return profiles


def _databases(home: Path, roots: Iterable[Path]) -> Iterator[tuple[Browser, Path]]:
    granted = tuple(roots)
    for browser in BROWSERS:
        for folder in browser.folders:
            if not any((home / folder).is_relative_to(root) for root in granted):
                continue
            for pattern in _PATTERNS[browser.family]:
                for database in sorted((home / folder).glob(pattern)):
                    if database.parent.name not in _NOT_A_PERSON:
                        yield browser, database


def _name(browser: Browser, database: Path) -> str:
    if browser.family == "safari":
        return browser.name
    folder = database.parent.name
    return (
        f"{browser.name}:{folder.partition('.')[2] or folder}"
        if browser.family == "firefox"
        else f"{browser.name}:{folder}"
    )
