"""The README's loop runs as printed and learns."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_loop_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    # The loss after the last step is far below that of an untrained model, the logarithm of the vocabulary.
    assert names["loss"].item() < 0.8 * names["torch"].log(names["torch"].tensor(names["policy"].vocab_size)).item()
    assert (tmp_path / "trained" / "model.safetensors").is_file()
