"""Declarations between packages are true: entry points load, and are what their group promises.

Declarations are read from the members' own files and compared with what is installed, so that an old environment can't
hide a new one.
"""

import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from longrl_trainer.rewards.registry import load_rewards
from mrsp_engine.families import ENTRY_POINT_GROUP as FAMILIES

ROOT = Path(__file__).parents[2]


def declared() -> list[tuple[str, str, str]]:
    """(group, name, value) of every entry point and command in the workspace."""
    found: list[tuple[str, str, str]] = []
    for path in sorted([*ROOT.glob("packages/*/pyproject.toml"), ROOT / "apps" / "pyproject.toml"]):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        groups = project.get("entry-points", {}) | {"console_scripts": project.get("scripts", {})}
        found += [(group, name, value) for group, members in groups.items() for name, value in members.items()]
    return found


@pytest.mark.parametrize(("group", "name", "value"), declared())
def test_every_declared_entry_point_is_installed_and_loads(group, name, value):
    installed = [entry for entry in entry_points(group=group) if entry.name == name]
    assert [entry.value for entry in installed] == [value], "install the workspace again: uv sync"
    assert callable(installed[0].load())


def test_a_family_is_declared_under_the_model_type_it_loads():
    families = {name for group, name, _ in declared() if group == FAMILIES}
    assert {"qwen2_5_vl", "qwen2", "qwen2_audio"} <= families
    for entry in entry_points(group=FAMILIES):
        assert entry.load()().model_type == entry.name


def test_a_recipe_can_name_every_declared_reward():
    names = [name for group, name, _ in declared() if group == "longrl_trainer.rewards"]
    judge = {"weight": 0.0, "base_url": "http://127.0.0.1:9/v1", "model": "judge"}
    recipe = dict.fromkeys(names, 0.0) | {"format": 1.0, "judge": judge}
    assert sorted(weighted.name for weighted in load_rewards(recipe)) == sorted(names)


def test_every_command_answers_for_help(capsys, monkeypatch):
    for group, name, _ in declared():
        if group == "console_scripts":
            (command,) = entry_points(group=group, name=name)
            monkeypatch.setattr(sys, "argv", [name, "--help"])
            with pytest.raises(SystemExit) as ended:
                command.load()()
            assert ended.value.code == 0
            assert "usage" in capsys.readouterr().out
