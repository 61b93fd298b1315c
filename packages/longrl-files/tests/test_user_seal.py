"""Seals hold for the user who set them, and for nobody else."""

import os
from pathlib import Path

import pytest

from longrl_files.user_seal import KEY_NAME, is_sealed, seal


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "longrl"


def test_a_seal_holds_for_these_bytes_and_this_key(state: Path) -> None:
    assert not is_sealed(b"note", "0" * 64)
    assert not state.exists()
    own = seal(b"note")
    assert own is not None
    assert own == seal(b"note")
    assert is_sealed(b"note", own)
    assert not is_sealed(b"other", own)
    for foreign in (None, 5, "", own[:-1], own.upper(), "ü" * 64, [own]):
        assert not is_sealed(b"note", foreign)
    assert (state / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == [KEY_NAME]
    (state / KEY_NAME).unlink()
    assert not is_sealed(b"note", own)


@pytest.mark.parametrize("kind", ["readable", "short", "long", "link", "fifo", "folder"])
def test_a_key_that_others_may_know_seals_nothing(state: Path, kind: str) -> None:
    own = seal(b"note")
    key = state / KEY_NAME
    if kind == "readable":
        key.chmod(0o640)
    elif kind in ("short", "long"):
        key.write_bytes(b"k" * (31 if kind == "short" else 33))
    else:
        key.rename(state / "elsewhere")
        {"link": lambda: key.symlink_to("elsewhere"), "fifo": lambda: os.mkfifo(key, 0o600), "folder": key.mkdir}[
            kind
        ]()
    assert seal(b"note") is None
    assert not is_sealed(b"note", own)


def test_without_a_place_for_a_key_nothing_is_sealed(state: Path) -> None:
    state.write_text("no folder")
    assert seal(b"note") is None
    assert not is_sealed(b"note", "0" * 64)
