"""Folders made by somebody else: what is a file in them, what leads elsewhere, what would hang."""

import os
import socket
from pathlib import Path

import pytest

from longrl_files.folders import ForeignFolder, follow_links


@pytest.fixture
def folder(tmp_path: Path) -> ForeignFolder:
    root = tmp_path / "dataset"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "file.json").write_text('{"a": [1]}')
    return ForeignFolder(root, error=LookupError)


def test_reads_regular_files(folder: ForeignFolder) -> None:
    assert folder.read_json("inner/file.json") == {"a": [1]}
    assert folder.names("inner") == ["file.json"]
    assert folder.names("nowhere") == []
    assert folder.path("inner/file.json").read_text() == folder.read_text("inner/file.json")


def test_a_folder_that_is_itself_a_link(folder: ForeignFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.root)
    assert ForeignFolder(tmp_path / "link", error=LookupError).read_json("inner/file.json") == {"a": [1]}


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "inner/../../secret", "/etc/hostname", "a\0b", "x" * 300])
def test_names_that_lead_elsewhere(folder: ForeignFolder, name: str) -> None:
    (folder.root.parent / "secret").write_text("secret")
    for use in (folder.open, folder.path, folder.read_bytes, folder.open_to_append, folder.place):
        with pytest.raises(LookupError):
            use(name)


def test_links_are_not_followed(folder: ForeignFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (folder.root / "file").symlink_to(outside / "secret")
    (folder.root / "nothing").symlink_to(outside / "new")
    (folder.root / "subfolder").symlink_to(outside)
    for name in ("file", "nothing", "subfolder/secret", "subfolder/new"):
        for use in (folder.open, folder.path, folder.read_text, folder.open_to_append):
            with pytest.raises(LookupError, match=r"is a link; .* --follow-links"):
                use(name)
    for name in ("file", "nothing", "subfolder/new"):
        with pytest.raises(LookupError, match="is a link"):
            folder.place(name)
    with pytest.raises(LookupError, match="is a link"):
        folder.names("subfolder")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def test_links_that_the_user_allows(folder: ForeignFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("shared")
    os.mkfifo(outside / "fifo")
    (folder.root / "file").symlink_to(outside / "secret")
    (folder.root / "fifo").symlink_to(outside / "fifo")
    (folder.root / "subfolder").symlink_to(outside)
    follow_links(folder.root)
    assert folder.read_text("file") == folder.read_text("subfolder/secret") == "shared"
    with pytest.raises(LookupError, match="a FIFO"):
        folder.open("fifo")


def test_snapshots_of_the_hubs_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "llm").mkdir(parents=True)
    (repository / "blobs" / "aa").write_text("{}")
    (repository / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to(Path("../../blobs/aa"))
    (snapshot / "llm" / "config.json").symlink_to(Path("../../../blobs/aa"))
    (snapshot / "other.json").symlink_to(Path("../../secret"))
    folder = ForeignFolder(snapshot, error=LookupError)
    assert folder.read_json("config.json") == folder.read_json("llm/config.json") == {}
    with pytest.raises(LookupError, match="is a link"):
        folder.open("other.json")


def test_what_is_no_regular_file(folder: ForeignFolder) -> None:
    os.mkfifo(folder.root / "fifo")
    place = Path.cwd()
    os.chdir(folder.root)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(place)
    for name in ("fifo", "socket", "inner"):
        for use in (folder.open, folder.read_bytes, folder.path, folder.place):
            with pytest.raises(LookupError):
                use(name)
    for name in ("fifo", "inner"):
        with pytest.raises(LookupError):
            folder.open_to_append(name)


def test_bounds(folder: ForeignFolder) -> None:
    (folder.root / "long.json").write_text("[" * 100_000)
    (folder.root / "bytes.json").write_bytes(b'"\xff"')
    with pytest.raises(LookupError, match="more than 8 bytes"):
        folder.read_bytes("inner/file.json", max_bytes=8)
    with pytest.raises(LookupError, match="recursion"):
        folder.read_json("long.json")
    with pytest.raises(LookupError, match="JSON"):
        folder.read_json("bytes.json")
    with pytest.raises(LookupError, match="UTF-8"):
        folder.read_text("bytes.json")


def test_appending(folder: ForeignFolder) -> None:
    for word in (b"one", b"two"):
        with folder.open_to_append("journal") as file:
            file.write(word)
    assert folder.read_bytes("journal") == b"onetwo"


def test_what_is_there_and_what_is_not(folder: ForeignFolder) -> None:
    found = folder.find("inner/file.json")
    assert found is not None
    with found:
        assert found.read() == b'{"a": [1]}'
    assert folder.find("inner/other.json") is None
    assert folder.find("nowhere/file.json") is None
    with pytest.raises(LookupError, match="a folder, expected a regular file"):
        folder.find("inner")


def test_all_files_of_a_folder(folder: ForeignFolder, tmp_path: Path) -> None:
    (folder.root / "b").write_text("b")
    (folder.root / ".hidden").mkdir()
    (folder.root / ".hidden" / "x").symlink_to(tmp_path)
    (folder.root / ".linked").symlink_to(tmp_path)

    def skips(name: str) -> bool:
        return name.startswith(".")

    assert list(folder.files(skips=skips)) == ["b", "inner/file.json"]
    assert list(folder.files("inner")) == ["inner/file.json"]
    with pytest.raises(LookupError, match="is a link"):
        list(folder.files())
    (folder.root / "inner" / "again").symlink_to(folder.root)
    with pytest.raises(LookupError, match="is a link"):
        list(folder.files(skips=skips))
    (folder.root / "inner" / "again").unlink()
    os.mkfifo(folder.root / "inner" / "pipe")
    with pytest.raises(LookupError, match="is a FIFO"):
        list(folder.files(skips=skips))


def test_a_folder_of_a_hubs_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    (snapshot / "llm").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "llm" / "config.json").symlink_to("../../../blobs/1")
    (snapshot / "llm" / "other.json").symlink_to("../../../secret")
    for folder, prefix in ((snapshot, "llm/"), (snapshot / "llm", "")):
        opened = ForeignFolder(folder, error=LookupError, link_cure="remove it")
        assert opened.read_json(f"{prefix}config.json") == {}
        with pytest.raises(LookupError, match=r"is a link; remove it"):
            opened.read_json(f"{prefix}other.json")
