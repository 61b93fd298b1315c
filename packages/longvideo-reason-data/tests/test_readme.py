"""The README's examples run when they are saved as files, one after another in one folder."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_examples_run_as_files(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    from layout_files import write_layout  # pyright: ignore[reportMissingImports]

    (tmp_path / "Video-MME").mkdir()
    write_layout(tmp_path / "Video-MME", "videomme")
    server.served, server.reply = ["my-model"], lambda body: '{"colour": "blue"}'
    printed: list[str] = []
    for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        (tmp_path / "example.py").write_text(code.replace("http://localhost:8000/v1", server.base_url))
        command = [sys.executable, "example.py"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        printed.append(ran.stdout)
    first, several, asked, benchmark = printed
    assert first.startswith("(8, 160, 160, 3) [")
    assert several.splitlines()[0] == "0 (160, 160, 3)"
    assert several.count("(8, 160, 160, 3)") == 2
    assert "answered {'colour': 'blue'} prompt_tokens=100" in asked
    assert len(benchmark.splitlines()) == 4
