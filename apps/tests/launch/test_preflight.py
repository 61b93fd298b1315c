"""The look before a start: everything that is wrong is one line each, and nothing is said where nothing is."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longrl.errors import AppError, AppUsageError
from longrl.launch import link as links
from longrl.launch.finished import describe_finished
from longrl.launch.job import NodeAddress
from longrl.launch.link import LifeWatch, NodeLink
from longrl.launch.preflight.exchange import describe_findings, run_trial
from longrl.launch.preflight.node_checks import check_node
from longrl.launch.preflight.nodes import compare_nodes, run_preflight
from longrl.launch.preflight.shared_folders import SharedFolders
from longrl.launch.start import start_job
from longrl.machine.gpus import GpuReport, find_gpus
from longrl.machine.resources import PROBE_BYTES
from longrl_trainer.runs.settings import describe_run, write_settings
from longvideo_reason_data.records.record import iter_records, write_records

SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
RECIPE = """
output = "run"
learning_rate = 1e-3
[model]
folder = "model"
store = "embeddings"
[data]
dataset = "dataset"
split = "train_sft"
num_frames = 4
"""
NO_GPU = GpuReport(problem="none here")


def test_nothing_is_wrong_and_nothing_is_left_behind(make_job, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    found = run_preflight(make_job(), NodeLink(0, 1, None), "start")
    assert found.problems == []
    assert "ranks on the CPU: 1" in found.lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_all_that_is_wrong_is_told_at_once(make_job, checkpoint, dataset):
    (checkpoint / SHARDS[0]).unlink()
    content = (checkpoint / SHARDS[1]).read_bytes()
    (checkpoint / SHARDS[1]).write_bytes(content[:-1])
    (dataset / "videos" / "a.mp4").unlink()
    problems = run_preflight(make_job(), NodeLink(0, 1, None), "start").problems
    expected = (
        f"model.safetensors.index.json: 1 of its 2 files are missing ({SHARDS[0]}); download it again",
        f"{SHARDS[1]}: is cut short or damaged",
        "a.mp4: no such file",
    )
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert problem.startswith("node 0 (")
        assert words in problem
        assert "\n" not in problem


def test_missing_files_are_counted_and_the_first_few_named(make_job, dataset):
    (record,) = iter_records(dataset / "records.parquet")
    media = [record.media[0].model_copy(update={"path": f"videos/{name}.mp4"}) for name in "abcdef"]
    records = [
        record.model_copy(update={"question_id": str(number), "media": (one,)}) for number, one in enumerate(media * 2)
    ]
    write_records(dataset / "records.parquet", records)
    (problem,) = check_node(make_job(), NO_GPU)
    assert f"{dataset}: 5 of its 6 files are missing or can't be opened: " in problem
    assert all(f"{name}.mp4: no such file" in problem for name in "bcd")
    assert problem.endswith("; and 2 more")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_5_omni"])
def test_a_family_that_hears_no_films_is_told_before_the_start(make_job, checkpoint, dataset, family):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": family}))
    data = {"dataset": str(dataset), "split": "train_sft", "num_frames": 4, "sound": True}
    problems = check_node(make_job(data=data), NO_GPU)
    line = "data.sound=true: no package here lets a model of type qwen2_5_vl hear films; set it to false"
    assert [problem.startswith(line) for problem in problems] == ([] if family == "qwen2_5_omni" else [True])


@pytest.mark.parametrize("place", [".", "llm"])
def test_a_checkpoint_without_a_tokenizer_is_told(make_job, checkpoint, place):
    (checkpoint / place).mkdir(exist_ok=True)
    tokenizer = checkpoint / place / "tokenizer.json"
    if place == "llm":
        (checkpoint / "tokenizer.json").rename(tokenizer)
    assert check_node(make_job(), NO_GPU) == []
    tokenizer.unlink()
    (problem,) = check_node(make_job(), NO_GPU)
    assert "has no tokenizer (expected tokenizer.json, or vocab.json and merges.txt); download it again" in problem
    for name in ("vocab.json", "merges.txt"):
        (checkpoint / place / name).write_text("{}")
    assert check_node(make_job(), NO_GPU) == []


def test_a_finished_run_is_said_to_be_finished_and_a_longer_one_is_not(make_job, tmp_path, capsys):
    job = make_job()
    job.output.mkdir()
    write_settings(job.output, describe_run("sft", job.config, model=job.config.model, data=job.config.data))
    assert describe_finished(job) is None
    (job.output / "result.json").write_text("{}")
    assert start_job(job) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{job.output}: this run is finished, so nothing is started; set more --epochs")
    assert not job.logs.exists()
    longer = make_job().config.model_copy(update={"epochs": 2})
    assert describe_finished(replace(job, config=longer)) is None
    quieter = make_job().config.model_copy(update={"checkpoint_every_steps": 2})
    assert describe_finished(replace(job, config=quieter)) is not None


def test_nothing_is_started_when_something_is_wrong(make_job, checkpoint, tmp_path, capsys):
    (checkpoint / SHARDS[0]).unlink()
    assert start_job(make_job()) == 1
    *_, problem, end = capsys.readouterr().err.splitlines()
    assert problem.startswith("error: node 0 (")
    assert "1 of its 2 files are missing" in problem
    assert end == "nothing was started: 1 problem"
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(make_job, dataset, capsys):
    assert start_job(make_job(output=str(dataset))) == 1
    assert f"{dataset} is not empty and contains no run of this trainer" in capsys.readouterr().err
    assert sorted(path.name for path in dataset.iterdir()) == ["records.parquet", "videos"]
    (problem, *_) = check_node(make_job(output=str(dataset / "records.parquet")), NO_GPU)
    assert "is a file, expected a folder; choose another `output`" in problem


def test_what_other_nodes_write_for_a_look_makes_no_folder_one_of_something_else(make_job):
    job = make_job()
    shared = SharedFolders(job, "start")
    for folder in (job.folder, job.config.model.store):
        folder.mkdir()
    shared.write()
    assert len(list(job.folder.iterdir())) == 1
    assert check_node(job, NO_GPU) == []


@pytest.mark.parametrize("name", ["config.json", "folder"])
def test_a_folder_that_is_no_checkpoint(make_job, checkpoint, name):
    if name == "folder":
        checkpoint.rename(checkpoint.with_name("elsewhere"))
    else:
        (checkpoint / name).unlink()
    (problem,) = check_node(make_job(), NO_GPU)
    assert "expected a checkpoint, set `model.folder`" in problem


def test_a_split_without_questions(make_job, dataset):
    data = {"dataset": str(dataset), "split": "held_out", "num_frames": 4}
    (problem,) = check_node(make_job(data=data), NO_GPU)
    assert "has no questions in the split 'held_out'" in problem


def test_a_disk_that_takes_no_more(make_job, tmp_path):
    """The system refuses files of that size, as it does where a quota is used up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PROBE_BYTES // 2, limits[1]))
    try:
        problems = check_node(make_job(), NO_GPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [problem.partition(";")[0] for problem in problems] == [
        f"{tmp_path}: can't be written (File too large)"
    ] * len(problems)
    assert ["choose another `output`" in problems[0], "set `model.store`" in problems[1]] == [True, True]
    assert not list(tmp_path.glob(".longrl-probe*"))


def test_room_for_the_checkpoints_is_expected(make_job, monkeypatch, checkpoint):
    monkeypatch.setattr("longrl.launch.preflight.node_checks.free_disk_bytes", lambda _: 5 * 10**8)
    (problem,) = check_node(make_job(), NO_GPU)
    assert "0.5 GB are free, expected 1.1 for the run" in problem


STAND_IN = """#!/bin/sh
# Stands in for the driver's own program, on a machine without a GPU.
echo "0, GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 81000, 580.65.06"
echo "1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 12000, 525.60.13"
"""


@pytest.fixture
def two_gpus(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(STAND_IN)
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_gpus_are_counted_and_their_memory_and_driver_judged(make_job, two_gpus):
    problems = check_node(make_job(device="cuda", processes=4), find_gpus(two_gpus))
    assert problems[0].startswith("2 GPUs are seen, expected --gpus 4; lower it")
    assert "driver 525.60.13, expected 580 or newer for CUDA 13" in problems[1]
    assert problems[2].startswith("GPU 1: 12.6 of 85.5 GB are free, expected 90%")
    assert len(problems) == 3
    assert check_node(make_job(device="cuda"), find_gpus(two_gpus | {"CUDA_VISIBLE_DEVICES": "0"})) == []


@pytest.mark.parametrize(
    ("chosen", "indices"), [("1,0", [1, 0]), ("GPU-bb", [1]), ("0,7,1", [0]), ("", []), ("-1", [])]
)
def test_only_the_gpus_that_cuda_would_see_count(two_gpus, chosen, indices):
    found = find_gpus(two_gpus | {"CUDA_VISIBLE_DEVICES": chosen})
    assert [gpu.index for gpu in found.gpus] == indices


def test_a_folder_that_nodes_do_not_share(make_job, tmp_path, monkeypatch):
    """A relative folder in another working directory, as on a disk that each node has for itself."""
    job = make_job(output="runs/one", model={"folder": "model", "store": str(tmp_path / "embeddings")})
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    shared = SharedFolders(job, "start")
    monkeypatch.chdir(first)
    shared.write()
    assert shared.find_unshared() == []
    monkeypatch.chdir(second)
    (problem,) = shared.find_unshared(patience_seconds=0.3)
    assert f"{second / 'runs/one'}: what node 0 writes there doesn't show up within 0.3 s" in problem
    assert "put `output` on a file system that all nodes share" in problem
    monkeypatch.chdir(first)
    shared.remove()
    assert not list(tmp_path.rglob(".longrl-shared*"))


def report(**changes: Any) -> dict[str, Any]:
    return {"host": "alpha", "seconds": 100.0, "versions": {"torch": "2.13.0"}, "settings": {"steps": 2}} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": 160.0}, "its clock is 60 s ahead of that of node 0, expected at most 5 s"),
        ({"seconds": 40.0}, "its clock is 60 s behind that of node 0"),
        ({"versions": {"torch": "2.12.0"}}, "torch is 2.12.0, and 2.13.0 on node 0; install the same on all nodes"),
        ({"settings": {"steps": 3}}, "steps is 3, and 2 on node 0; start the same on all nodes"),
    ],
)
def test_nodes_are_compared(changes, words):
    assert compare_nodes([report(), report(seconds=101.0)]) == []
    (problem,) = compare_nodes([report(), report(host="beta", **changes)])
    assert problem.startswith("node 1 (beta): ")
    assert words in problem


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ranks_that_do_not_come_are_named(make_job):
    """Of four only the two of the second node, so that these wait for the others."""
    link = NodeLink(0, 1, None)
    job = make_job(processes=2, num_nodes=2, node_rank=1, address=NodeAddress(host="127.0.0.1", port=link.port))
    line, (problem,) = describe_findings(job, run_trial(job, link, limit_seconds=12.0))
    assert line == ""
    assert problem.startswith("the exchange fails on rank 2, 3: ")
    assert "GLOO_SOCKET_IFNAME" in problem


def open_pair(patience_seconds: float = 20.0) -> list[NodeLink]:
    """Two nodes' links, in one process."""
    first = NodeLink(0, 2, NodeAddress(host="127.0.0.1", port=0), patience_seconds)
    return [first, NodeLink(1, 2, NodeAddress(host="127.0.0.1", port=first.port), patience_seconds)]


def test_nodes_tell_each_other_what_they_found():
    pair = open_pair()
    found: list[list[Any]] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.exchange("x", one.node_rank))) for one in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1], [0, 1]]


def test_a_node_that_does_not_come_is_named():
    first, _ = open_pair(patience_seconds=0.3)
    with pytest.raises(AppError, match=r"node 1 didn't come within 0.3 s; start the same command on every node"):
        first.exchange("x", 1)


def test_a_port_that_is_in_use_and_a_first_node_that_is_not_there(monkeypatch):
    first = NodeLink(0, 2, NodeAddress(host="127.0.0.1", port=0))
    with pytest.raises(AppUsageError, match="the port is in use; choose another port"):
        NodeLink(0, 2, NodeAddress(host="127.0.0.1", port=first.port))
    monkeypatch.setattr(links, "CALL_SECONDS", 0.2)
    with pytest.raises(AppUsageError, match=r"node 0 didn't answer within 0.1 s; start the same command there"):
        NodeLink(1, 2, NodeAddress(host="127.0.0.1", port=1), patience_seconds=0.1)


def test_an_unknown_machine_and_a_second_port_that_is_in_use():
    with pytest.raises(AppUsageError, match=r"--address nowhere.invalid:29500: no machine of this name is known here"):
        NodeLink(1, 2, NodeAddress(host="nowhere.invalid", port=29500))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(AppUsageError, match=rf"port {port}, which torchrun uses, is in use; choose another port"):
            NodeLink(0, 2, NodeAddress(host="127.0.0.1", port=port - 1))


@pytest.mark.long
@pytest.mark.parametrize("cause", ["a signal", "the first node"])
def test_a_node_whose_torchrun_waits_for_the_first_one_ends_all_the_same(cause, make_job, tmp_path):
    """Here is the first node's link, and nothing where its torchrun should be."""
    recipe = tmp_path / "sft.toml"
    recipe.write_text(RECIPE)
    link = NodeLink(0, 2, NodeAddress(host="127.0.0.1", port=0))
    command = [
        sys.executable,
        "-m",
        "longrl",
        "launch",
        str(recipe),
        "--device",
        "cpu",
        "--gpus",
        "1",
        "--no-preflight",
    ]
    command += ["--nodes", "2", "--node-rank", "1", "--address", f"127.0.0.1:{link.port}"]
    node = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        link.exchange("start", "20260101-000000")
        deadline = time.monotonic() + 100.0
        while not link.ask("beat/1") and time.monotonic() < deadline:
            link.tell("beat/0", link.count("beats"))
            time.sleep(0.2)
        if cause == "a signal":
            node.send_signal(signal.SIGTERM)
        else:
            link.tell("ended/0", {"failure": {"node": 0, "rank": None, "code": 3, "lines": ["port 5 is in use"]}})
        said = node.communicate(timeout=60.0)[1]
    finally:
        node.kill()
    assert node.returncode == (75 if cause == "a signal" else 3), said
    asked = "SIGTERM came: the ranks are asked to save and stop, by SIGUSR1"
    assert (asked in said.splitlines()) == (cause == "a signal")
    assert ("port 5 is in use" in said) == (cause != "a signal")
    assert "Traceback" not in said


def test_the_failure_that_was_told_first_is_the_cause():
    """Ranks elsewhere fail because of it, and whose node tells first is a matter of moments."""
    cause, consequence = ({"node": node, "code": code, "lines": []} for node, code in ((1, 137), (0, 1)))
    first, second = (LifeWatch(link, lambda _: None) for link in open_pair())
    assert second.tell_end(cause) == cause
    assert first.tell_end(consequence) == cause
    assert LifeWatch(NodeLink(0, 1, None), lambda _: None).tell_end(None) is None


@pytest.mark.parametrize("end", ["fails", "is silent", "is done"])
def test_what_becomes_of_other_nodes_is_noticed(end, monkeypatch):
    monkeypatch.setattr(links, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(links, "SILENCE_SECONDS", 0.5)
    first, second = open_pair()
    heard: list[dict[str, Any]] = []
    noticed = threading.Event()

    def note(trouble: dict[str, Any]) -> None:
        heard.append(trouble)
        noticed.set()

    with LifeWatch(first, note):
        with LifeWatch(second, note) as other:
            assert not noticed.wait(0.8)
            if end != "is silent":
                failure = {"node": 1, "code": 7, "lines": ["it broke"]}
                other.tell_end(failure if end == "fails" else None)
        if end == "is done":
            assert not noticed.wait(0.8)
            return
        assert noticed.wait(5.0)
    assert heard[0]["node"] == 1
    assert ("no sign of life" in heard[0]["lines"][0]) == (end == "is silent")
