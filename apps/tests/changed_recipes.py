"""Recipes of tests, with a line changed where a test needs another."""

from pathlib import Path


def write_changed(text: str, folder: Path, *, old: str = "", new: str = "") -> Path:
    """Write a recipe into a folder.

    Args:
        text: The recipe.
        folder: Where.
        old: A part of it that is replaced, the first time that it occurs; none if it is empty.
        new: What comes in its place.
    """
    recipe = folder / "tiny.toml"
    assert old in text
    recipe.write_text(text.replace(old, new, 1) if old else text)
    return recipe
