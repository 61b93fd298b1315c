"""How an interrupted command ends, wherever the interruption hits it."""

import subprocess
import sys

import pytest

LOADED = """
import sys
from longvideo_reason_data.endings import end_quietly

sys.exit(end_quietly(lambda: {command}))
"""


@pytest.mark.parametrize("arguments", [["interrupted.py"], ["-m", "interrupted"]])
@pytest.mark.parametrize("command", ["(_ for _ in ()).throw(KeyboardInterrupt)", "exec('raise KeyboardInterrupt')"])
def test_an_interruption_has_one_status_however_the_command_is_started(command, arguments, tmp_path):
    (tmp_path / "interrupted.py").write_text(LOADED.format(command=command))
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert (done.stderr, done.returncode) == ("interrupted; start the same command again to go on\n", 130)
