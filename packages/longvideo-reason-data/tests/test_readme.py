"""The README's examples run as printed, one after another."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_examples_run_as_printed(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, str(README), "exec"), names)
    assert names["frames"].shape == (8, names["video"].height, names["video"].width, 3)
    server.served, server.reply = ["my-model"], lambda body: '{"colour": "blue"}'
    asyncio.run(names["ask"](server.base_url, tmp_path))
    assert "answered {'colour': 'blue'} prompt_tokens=100" in capsys.readouterr().out
