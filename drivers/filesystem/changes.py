"""Changes that can be taken back: a file written, something moved to the trash, and the undo of both.

Every change follows one order: a copy of what is there, a row that says what is about to happen, the change in one
step, the row again. `recover` reads those rows after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from llmos.drivers.filesystem import tree
from llmos.drivers.filesystem.areas import Area, parent_in, refusal, shown
from llmos.drivers.filesystem.atomic import (
    Content,
    changed,
    content_of,
    discard,
    fill,
    put,
    rename_new,
    swap_back,
    take_away,
)
from llmos.drivers.filesystem.backups import Backups, Effect, State
from llmos.drivers.sdk import Call, Code, OpError
from llmos.ipc import log as logs

MAX_WAIT_S = 600.0
"""Seconds that a change without a deadline waits for the one before it."""

_OTHER = Content(secrets.token_bytes(32))
"""Stands for what is no file that this driver would touch: equal to nothing."""

log = logs.get_logger()


class Changes:
    """One at a time, beneath the writable roots."""

    def __init__(self, backups: Backups, writable: Sequence[Path]) -> None:
        self._backups = backups
        self._writable = sorted(writable, reverse=True)
        self._one = threading.Lock()

    def write(self, call: Call, area: Area, within: str, made: Callable[[Content | None], bytes]) -> str:
        """Puts what `made` makes of the old content in its place; gives the token that undoes it. Raises `OpError`, `OSError`."""
        with self._alone(call), parent_in(area, within) as (folder, name):
            old = content_of(folder, name)
            new = Content(made(old), old.mode if old else None, None, old.gid if old else None)
            effect = self._begin_write(_path(area, within, name), old, new)
            try:
                mode = fill(folder, effect.temporary, new)
                put(folder, effect.temporary, name, old.digest if old else None)
            except BaseException:
                self._settle(effect, folder, name)
                raise
            self._backups.save(replace(effect, after_mode=mode, state=State.DONE))
        return effect.token

    def trash(self, call: Call, area: Area, within: str) -> tuple[str, int]:
        """Moves a file, link or folder out of sight; gives the token that brings it back, and how many entries that were."""
        with self._alone(call), parent_in(area, within) as (folder, name), self._backups.folder() as items:
            extent = tree.measure(folder, name, call.check)
            size = self._backups.prune(extent.size)
            path = _path(area, within, name)
            effect = self._backups.save(Effect(self._backups.new_token(), "move_to_trash", path, time.time(), size))
            try:
                rename_new(folder, name, effect.temporary)  # from here on nobody finds it by its name to change it
                tree.copy(folder, effect.temporary, items, effect.token, call.check, size)
                os.fsync(items)
            except BaseException:
                self._settle(effect, folder, name)
                raise
            effect = self._backups.moved(effect, State.CLEARING)
            self._clear(effect, folder)
        return effect.token, len(extent.names)

    def undo(self, call: Call, token: str) -> Effect:
        """Brings back what was there. Raises `OpError` `NOT_FOUND`, `CONFLICT` (changed since), and leaves all as it is."""
        with self._alone(call):
            effect = self._backups.get(token)
            if effect.state is State.UNDONE:
                return effect
            with self._place(effect) as (folder, name):
                if effect.state in (State.BEGUN, State.UNDOING):
                    self._settle(effect, folder, name)
                    effect = self._backups.get(token)
                if effect.state is not State.UNDONE:
                    (self._undo_write if effect.op == "write" else self._undo_trash)(call, effect, folder, name)
                    self._backups.undone(effect)
            return effect

    def recover(self) -> None:
        """Finishes or takes back what a kill interrupted; what cannot be reached now waits for the next time. Never raises."""
        for effect in self._backups.unfinished():
            try:
                with self._place(effect) as (folder, name):
                    self._settle(effect, folder, name)
            except OpError as error:
                log.warning("recover.failed", op=effect.op, state=effect.state.value, err=error.code.value)

    def _settle(self, effect: Effect, folder: int, name: str) -> None:
        """One that did not come to its end, finished or taken back by what the disk shows. Raises nothing: it stays for `recover`."""
        try:
            (self._settle_write if effect.op == "write" else self._settle_trash)(effect, folder, name)
        except (OpError, OSError, sqlite3.Error) as error:
            log.warning("settle.failed", op=effect.op, state=effect.state.value, err=type(error).__name__)

    @contextlib.contextmanager
    def _alone(self, call: Call) -> Iterator[None]:
        if not self._one.acquire(timeout=min(call.remaining(), MAX_WAIT_S)):
            raise OpError(Code.BUSY, "another change takes too long", "try again")
        try:
            call.check()
            yield
        finally:
            self._one.release()

    @contextlib.contextmanager
    def _place(self, effect: Effect) -> Iterator[tuple[int, str]]:
        path = PurePosixPath(effect.path)
        root = next((root for root in self._writable if path.is_relative_to(root)), None)
        if root is None:
            hint = (
                f"llmosctl perm grant filesystem 'fs.write(path={shown(str(path.parent))})' lets this driver write it"
            )
            raise OpError(Code.DENIED, f"{shown(effect.path)} may not be changed any more", hint)
        try:
            with parent_in(Area(root, ""), str(path.relative_to(root))) as place:
                yield place
        except OSError as error:
            raise refusal(shown(effect.path), error) from error

    # -- write

    def _begin_write(self, path: str, old: Content | None, new: Content) -> Effect:
        size = self._backups.prune(len(old.data) if old else 0)
        effect = Effect(self._backups.new_token(), "write", path, time.time(), size, after=new.digest)
        if old:
            with self._backups.folder() as items:
                fill(items, effect.token, Content(old.data, 0o600))
                os.fsync(items)
            effect = replace(
                effect,
                before=old.digest,
                mode=old.mode or 0,
                mtime_ns=old.mtime_ns or 0,
                gid=-1 if old.gid is None else old.gid,
            )
        return self._backups.save(effect)

    def _undo_write(self, _call: Call, effect: Effect, folder: int, name: str) -> None:
        now = content_of(folder, name)
        if now is None or (now.digest, now.mode) != (effect.after, effect.after_mode):
            raise changed(shown(effect.path))
        old = self._old(effect)
        effect = self._backups.moved(effect, State.UNDOING)
        try:
            if old is None:
                take_away(folder, name, effect.temporary, effect.after)
            else:
                fill(folder, effect.temporary, old)
                put(folder, effect.temporary, name, effect.after)
        except BaseException:
            self._settle(effect, folder, name)
            raise

    def _old(self, effect: Effect) -> Content | None:
        """What was there before a write, as it was. Raises `OpError(INTERNAL)` when the copy is damaged."""
        if not effect.before:
            return None
        with self._backups.folder() as items:
            kept = content_of(items, effect.token)
        if kept is None or kept.digest != effect.before:
            raise OpError(Code.INTERNAL, f"the copy of {shown(effect.path)} is damaged")
        return Content(kept.data, effect.mode, effect.mtime_ns, effect.gid)

    def _settle_write(self, effect: Effect, folder: int, name: str) -> None:
        now, left = _seen(folder, name), _seen(folder, effect.temporary)
        if effect.state is State.UNDOING and not effect.before:
            self._settle_taking_away(effect, folder, name, now, left)
            return
        placed, swapped_out = effect.after, effect.before
        if effect.state is State.UNDOING:
            placed, swapped_out = swapped_out, placed
        done = now is not None and now.digest == placed
        if done and left and effect.before and placed != swapped_out and left.digest not in (placed, swapped_out):
            swap_back(
                folder, effect.temporary, name
            )  # what came out was somebody's own, and there was no time to see it
            done = False
        elif left is _OTHER:
            rename_new(folder, effect.temporary, name)
        discard(folder, effect.temporary)
        if effect.state is State.UNDOING:
            self._backups.undone(effect) if done else self._backups.moved(effect, State.DONE)
        elif done and now is not None:
            self._backups.save(replace(effect, after_mode=now.mode or 0, state=State.DONE))
        else:
            self._backups.drop(effect)

    def _settle_taking_away(
        self, effect: Effect, folder: int, name: str, now: Content | None, left: Content | None
    ) -> None:
        """Of a file that a write had made, when that is undone."""
        if left and left.digest != effect.after:
            rename_new(folder, effect.temporary, name)
        elif left or now is None:
            discard(folder, effect.temporary)
            self._backups.undone(effect)
            return
        self._backups.moved(effect, State.DONE)

    # -- trash

    def _clear(self, effect: Effect, folder: int) -> None:
        """What is left of the original goes; what cannot go now is tried again by `recover`."""
        try:
            tree.remove(folder, effect.temporary)
            os.fsync(folder)
        except OSError as error:
            log.warning("trash.left", err=type(error).__name__)
            return
        self._backups.moved(effect, State.DONE)

    def _undo_trash(self, call: Call, effect: Effect, folder: int, name: str) -> None:
        if effect.state is State.CLEARING:
            self._clear(effect, folder)
        effect = self._backups.moved(effect, State.UNDOING)
        try:
            with self._backups.folder() as items:
                tree.copy(items, effect.token, folder, effect.temporary, call.check, effect.size)
            rename_new(folder, effect.temporary, name)
            os.fsync(folder)
        except BaseException as error:
            self._settle(effect, folder, name)
            if isinstance(error, FileExistsError):
                detail = f"{shown(effect.path)}: something else has that name now; what was there is still in the trash"
                raise OpError(Code.CONFLICT, detail, "move it away and try again") from error
            raise

    def _settle_trash(self, effect: Effect, folder: int, name: str) -> None:
        if effect.state is State.CLEARING:
            self._clear(effect, folder)
        elif effect.state is State.UNDOING:
            tree.remove(folder, effect.temporary)
            self._backups.moved(effect, State.DONE)
        else:
            with contextlib.suppress(FileNotFoundError):  # it was never renamed, or has been renamed back
                rename_new(folder, effect.temporary, name)
            self._backups.drop(effect)


def _seen(folder: int, name: str) -> Content | None:
    try:
        return content_of(folder, name)
    except OpError:
        return _OTHER
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise
        return _OTHER


def _path(area: Area, within: str, name: str) -> str:
    """Absolute, with the name as the disk spells it."""
    return str(PurePosixPath(area.path, within).with_name(name))
