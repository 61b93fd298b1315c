"""What is started, and where its output goes: torchrun's lines, Slurm's script, and requests that can't be met."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from longrl.cli import main
from longrl.commands.launch import announce
from longrl.errors import AppError
from longrl.launch.job import NodeAddress
from longrl.launch.logs import RankLogs, last_lines, make_logs
from longrl.launch.slurm import write_script
from longrl.stages import command_of, read_tables

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_command_of_every_shipped_recipe_is_found(recipe):
    expected = next(
        (
            command
            for command in ("generate-grpo", "generate", "grpo", "sft", "evaluate")
            if recipe.stem.endswith("_" + command.replace("-", "_"))
        ),
        "quickstart",
    )
    assert command_of(read_tables(recipe)) == expected


def test_torchruns_lines_are_printed_and_nothing_is_started(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "qwen2_5_vl_7b_grpo.toml")
    sizes = ["--nodes", "2", "--gpus", "8", "--address", "alpha:29500"]
    assert main(["launch", recipe, *sizes, "--print", "--group-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["# node 0", "# node 1"]
    for node, line in enumerate(lines[1::2]):
        words = shlex.split(line)
        assert {f"--node-rank={node}", "--nnodes=2", "--nproc-per-node=8", "--master-port=29501"} <= set(words)
        assert words[-6:] == ["longrl.launch.rank", "SIGUSR1", "grpo", recipe, "--group-size", "16"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "2"], "--address is missing with --nodes 2: set HOST:PORT of the first node"),
        (["--nodes", "2", "--address", "alpha"], "--address 'alpha': expected HOST:PORT of the first node"),
        (["--nodes", "2", "--address", "a:1", "--node-rank", "2"], "--node-rank 2 with --nodes 2: expected 0 to 1"),
        (["--gpus", "0"], "--gpus 0: expected 1 or more"),
        (["--slurm", "--sbatch", "not an option"], "--sbatch 'not an option': expected NAME=VALUE"),
        (["--slurm", "--sbatch", "p=gpu"], "--sbatch 'p=gpu': expected NAME=VALUE with the long name of an option"),
        (["--slurm", "--sbatch", "cpus_per_task=8"], "--sbatch 'cpus_per_task=8': expected NAME=VALUE"),
        (["--slurm", "--sbatch", "Time=1:00:00"], "--sbatch 'Time=1:00:00': expected NAME=VALUE"),
        (["--sbatch", "time=1:00:00"], "--sbatch time=1:00:00: expected with --slurm; add it, or omit --sbatch"),
        (["--slurm", "--warning-seconds", "-4"], "--warning-seconds -4: expected 1 or more"),
        (["--steps", "0"], "--steps 0: expected greater than or equal to 1"),
    ],
)
def test_wrong_requests_get_one_line(arguments, words, capsys):
    sizes = [] if "--gpus" in arguments else ["--gpus", "1"]
    assert main(["launch", str(RECIPES / "qwen2_5_vl_3b_grpo.toml"), *sizes, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("nothing.toml", "there is no such recipe"),
        ("quickstart.toml", "a recipe of `longrl quickstart`, which is several stages"),
        ("pictures_generate.toml", "`longrl generate` runs in one process; set --nodes 1 and --gpus 1"),
    ],
)
def test_recipes_that_are_not_started_so(recipe, words, capsys):
    assert main(["launch", str(RECIPES / recipe), "--gpus", "2", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(("processes", "is_warned"), [(1, False), (64, True)])
def test_what_is_started_is_said_at_once_and_too_many_ranks_for_the_processor_too(
    processes, is_warned, make_job, capsys, monkeypatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    announce(make_job(processes=processes))
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith("sft.toml: 1 rank on the CPU" if processes == 1 else "sft.toml: 64 ranks on the CPU")
    assert [line.partition(":")[0] for line in others] == ["warning"] * is_warned
    assert not is_warned or "--gpus 64 with --device cpu, and 2 processor cores here" in others[0]


STAND_INS = {
    # A cluster of two nodes, which can't be had here: what its programs do with this script, on one machine.
    "scontrol": 'if [ "$1" = show ]; then echo alpha; echo beta; else echo "$@" >> "$CALLS"; fi',
    "srun": 'shift 2; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; status=$?; done; exit $status',
    "python": 'echo "$@" >> "$CALLS"; exit "$CODE"',
}


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurms_script_starts_every_node_and_is_queued_again_when_the_run_has_saved(
    make_job, tmp_path, monkeypatch, code
):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    job = make_job(num_nodes=2, processes=8, device="cuda", address=NodeAddress(host="first-node", port=29500))
    script = write_script(job, ["time=1:00:00", "nodes=2"], 300)
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"time=1:00:00", "signal=USR1@300", "requeue", "ntasks-per-node=1", "gpus-per-node=8"} <= set(directives)
    assert directives.count("nodes=2") == 1
    calls = tmp_path / "calls"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "CODE": str(code)}
    environment |= {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "alpha,beta"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    starts = [
        f"-m longrl launch {tmp_path}/sft.toml --nodes 2 --gpus 8 --device cuda "
        f"--node-rank {node} --address alpha:20024"
        for node in (0, 1)
    ]
    assert calls.read_text().splitlines() == [*starts, *(["requeue 12"] if code == 75 else [])]


@pytest.mark.parametrize(
    ("stand_in", "code", "words"),
    [
        (None, 0, "launch.sbatch: written; no sbatch is installed here"),
        ("echo Submitted batch job 7", 0, "launch.sbatch: Submitted batch job 7"),
        ("echo invalid partition >&2; exit 1", 1, "launch.sbatch: sbatch refuses it: invalid partition"),
    ],
)
def test_the_script_is_kept_and_submitted_where_slurm_is(tmp_path, monkeypatch, capsys, stand_in, code, words):
    programs = tmp_path / "programs"
    programs.mkdir()
    if stand_in is not None:  # for a cluster's program
        (programs / "sbatch").write_text(f"#!/bin/sh\n{stand_in}\n")
        (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    assert main(["launch", str(RECIPES / "qwen2_5_vl_7b_grpo.toml"), "--gpus", "8", "--nodes", "2", "--slurm"]) == code
    said = capsys.readouterr()
    assert words in (said.err if code else said.out)
    script = (tmp_path / "runs/qwen2_5_vl_7b_grpo/logs/launch.sbatch").read_text()
    assert "#SBATCH --nodes=2" in script


def test_the_output_of_every_rank_has_its_place(tmp_path):
    logs = make_logs(tmp_path / "run" / "logs", "start")
    environments = {place: {"RANK": str(rank)} for place, rank in enumerate((0, 5))}
    places = RankLogs(str(logs)).reify(environments)
    assert [Path(path).name for path in places.stdouts.values()] == ["rank-0.out", "rank-5.out"]
    assert places.tee_stderrs == {0: str(logs / "rank-0.err")}
    (logs / "rank-5.err").write_text("\n".join(f"line {number}" for number in range(99)) + "\n\x1b[2Jlast\n")
    shown = last_lines(logs, 5)
    assert shown[-2:] == ["line 98", "\\x1b[2Jlast"]
    assert len(shown) == 12
    assert last_lines(logs, 0) == []


def test_logs_are_not_written_through_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AppError, match="is a link"):
        make_logs(tmp_path / "run" / "logs", "start")
    assert list((tmp_path / "elsewhere").iterdir()) == []
