"""Seals that only this user could have set: what is remembered in a folder that others may write, or that was copied.

A note beside shared data (a file's digest, say) saves work, but anybody could have written it. A seal is an HMAC with a
key that lies in the user's state folder (`$XDG_STATE_HOME/longrl`, or `~/.local/state/longrl`), readable by nobody else
and made when it is first needed. Where there can be no such key nothing is sealed and no seal holds, so the work is
done again.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

KEY_NAME = "seal.key"
KEY_BYTES = 32


def seal(content: bytes) -> str | None:
    """The seal of some bytes, in hexadecimal; None where this user can have no key."""
    key = _read_key(_key_path(), is_made=True)
    return None if key is None else hmac.new(key, content, hashlib.sha256).hexdigest()


def is_sealed(content: bytes, found: object) -> bool:
    """Whether this user sealed these bytes so."""
    key = _read_key(_key_path(), is_made=False)
    if key is None or not isinstance(found, str):
        return False
    return hmac.compare_digest(
        hmac.new(key, content, hashlib.sha256).hexdigest().encode(), found.encode(errors="replace")
    )


def _key_path() -> Path | None:
    named = os.environ.get("XDG_STATE_HOME", "")
    try:
        state = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a home
        return None
    return state / "longrl" / KEY_NAME


def _read_key(path: Path | None, *, is_made: bool) -> bytes | None:
    if path is None:
        return None
    try:
        if is_made and not path.exists():
            _make_key(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
            key = file.read(KEY_BYTES + 1) if is_own else b""
    except OSError:
        return None
    return key if len(key) == KEY_BYTES else None


def _make_key(path: Path) -> None:
    """Whole or not at all, and the first of several processes wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{KEY_NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            return
    finally:
        partial.unlink(missing_ok=True)
