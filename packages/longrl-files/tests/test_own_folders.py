"""Folders that are changed: nothing is written or removed through a link, and a new file is a new one."""

from pathlib import Path

import pytest

from longrl_files.own_folders import OwnFolder


@pytest.fixture
def folder(tmp_path: Path) -> OwnFolder:
    root, outside = tmp_path / "store", tmp_path / "outside"
    root.mkdir()
    (outside / "inner").mkdir(parents=True)
    (outside / "secret").write_text("secret")
    (root / "linked").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    return OwnFolder(root, error=LookupError, link_cure="remove it")


def outside(folder: OwnFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.root.parent)) for path in (folder.root.parent / "outside").rglob("*"))


def test_files_are_made_renamed_linked_and_removed(folder: OwnFolder) -> None:
    folder.make_folder("ab")
    folder.make_folder("ab")
    with folder.create("ab/new") as file:
        file.write(b"text")
    folder.link("ab/new", "ab/second")
    with pytest.raises(FileExistsError):
        folder.link("ab/new", "ab/second")
    folder.replace("ab/new", "ab/third")
    assert folder.names("ab") == ["second", "third"]
    assert folder.read_text("ab/second") == folder.read_text("ab/third") == "text"
    folder.remove("ab/second")
    folder.remove("ab/second")
    assert folder.status("ab/second") is None
    folder.remove_tree("ab")
    folder.remove_tree("ab")
    assert folder.status("ab") is None


def test_nothing_is_reached_through_a_link(folder: OwnFolder) -> None:
    before = outside(folder)
    (folder.root / "own").write_text("x")
    for change in (
        lambda: folder.create("linked/new"),
        lambda: folder.remove("linked/secret"),
        lambda: folder.remove_tree("linked/inner"),
        lambda: folder.make_folder("linked/new"),
        lambda: folder.make_folder("linked"),
        lambda: folder.replace("own", "linked/secret"),
        lambda: folder.link("own", "linked/new"),
        lambda: folder.status("linked/secret"),
        lambda: folder.create("../outside/new"),
    ):
        with pytest.raises(LookupError):
            change()
    with pytest.raises(FileExistsError):
        folder.create("file")
    folder.replace("own", "file")
    assert (folder.root / "file").read_text() == "x"
    (folder.root / "inner").mkdir()
    (folder.root / "inner" / "deep").symlink_to(folder.root.parent / "outside")
    for name in ("inner", "linked", "file"):
        folder.remove_tree(name)
    assert folder.names() == []
    assert outside(folder) == before


def test_a_folder_that_is_there_is_not_listed(folder: OwnFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.make_folder("ab")

    def listed(_: object) -> None:
        pytest.fail("takes long with many files")

    monkeypatch.setattr("os.scandir", listed)
    folder.make_folder("ab")
