"""`longrl watch` and `longrl report` of a run, as they are typed."""

import signal
import subprocess
import urllib.request

import pytest
from watched_journals import write_run

from longrl.cli import main


@pytest.mark.parametrize("command", ["watch", "report"])
def test_folders_that_are_no_run_are_one_line(command, tmp_path, capsys):
    write_run(tmp_path / "both" / "grpo", num_steps=1)
    for folder, words in ((tmp_path / "nothing", "no run"), (tmp_path / "both", "the folders grpo in it are runs")):
        assert main([command, str(folder)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_can_not_be_is_one_line(port, tmp_path, capsys):
    write_run(tmp_path / "run", num_steps=1)
    assert main(["watch", str(tmp_path / "run"), "--port", port]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--port {port}" in error


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(longrl, tmp_path):
    write_run(tmp_path / "run", num_steps=1)
    with subprocess.Popen(
        longrl.line("watch", tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        address = process.stdout.readline().split(": ")[1].split()[0]
        with urllib.request.urlopen(f"{address}groups/1-1") as answer:
            assert b"It is A." in answer.read()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")


def test_the_report_of_a_run_is_its_page(tmp_path, capsys):
    write_run(tmp_path / "run", num_steps=1)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    assert "It is A." in (tmp_path / "run" / "report.html").read_text()
