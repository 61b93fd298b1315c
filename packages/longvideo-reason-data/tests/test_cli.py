"""The command from the user's side: in its own process, with one clear line for every mistake."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from hostile_servers import BEHAVIOURS, HostileServer

from longvideo_reason_data.cli import main
from longvideo_reason_data.media.decoders.base import DecoderName

MakeVideo = Callable[..., Path]
PROGRAM = "import sys; from longvideo_reason_data.cli import main; sys.exit(main(sys.argv[1:]))"


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def failed(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert result.returncode == code, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in result.stderr
    assert sum(line.startswith("error: ") for line in result.stderr.splitlines()) == 1


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which avoids loading everything again for each of many mistakes."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


@pytest.fixture
def films(make_video: MakeVideo, tmp_path: Path) -> Path:
    for number in range(2):
        make_video(f"films/film {number}.mp4", num_frames=30, first_number=100 * number)
    return tmp_path / "films"


@pytest.mark.slow
def test_build_check_and_stats(server: Any, films: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    arguments = ("--videos", films, "--output", dataset, "--base-url", server.base_url, "--model", "model")
    filters = ("--filters.num-samples", "2", "--filters.conditions", "blind", "single_frame", "full")
    built = command("build", *arguments, *filters, OPENAI_API_KEY="secret-key")
    assert built.returncode == 0, built.stderr
    assert "questions: 8 of 8 kept" in built.stdout
    assert "calls: 18 made, 0 from the journal" in built.stdout
    assert "filtered: 8 of 8 kept" in built.stdout
    assert "\nnote: no questions in " in built.stdout  # two videos can't be in three splits
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["calls"] == {"made": 18 + 8 * 3 * 2, "cached": 0, "failed": {}}
    assert manifest["tools"]["decoder"].startswith("pyav")
    assert manifest["filter"]["pass_rates"]["full"]["right_rate"] == 1
    everything = built.stdout + built.stderr
    written = [path for path in dataset.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    assert "secret-key" not in everything + "".join(path.read_text(errors="replace") for path in written)

    checked = command("check", dataset)
    assert checked.returncode == 0
    *notes, verdict = checked.stdout.splitlines()
    assert verdict == f"{dataset}: sound"
    assert all(line.startswith("note: ") for line in notes)
    counted = command("stats", dataset)
    assert counted.returncode == 0
    numbers = json.loads(counted.stdout)
    assert (numbers["questions"], numbers["videos"]) == (8, 2)
    assert sum(numbers["right_letters"].values()) == 8

    next((dataset / "videos").iterdir()).unlink()
    broken = command("check", dataset)
    failed(broken, 1, "problem")
    assert "is missing" in broken.stdout


def build_with(server: Any, films: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return in_process(
        *("build", "--videos", films, "--output", output, "--base-url", server.base_url, "--model", "model"),
        *("--first-wait-seconds", "0.01", "--filters.num-samples", "2", "--filters.conditions", "blind", "full", *more),
    )


@pytest.mark.slow
def test_a_dataset_states_how_its_models_were_really_asked(server: Any, films: Path, tmp_path: Path) -> None:
    """A server with a fixed temperature that accepts no seed and at most two images."""

    def fail(body: dict[str, Any], times: int) -> Any:
        num_pictures = json.dumps(body).count('"image_url", "image_url"')
        words = (
            "temperature must be 1"
            if "temperature" in body
            else "Unsupported parameter: 'seed'"
            if "seed" in body
            else f"At most 2 image(s) may be provided in one prompt, {num_pictures} given."
        )
        is_wrong = "temperature" in body or "seed" in body or num_pictures > 2
        return (400, {}, json.dumps({"error": {"message": words}}).encode()) if is_wrong else None

    server.fail = fail
    built = build_with(server, films, tmp_path / "dataset")
    assert built.returncode == 0, built.stderr
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert manifest["kept"]["questions"] == 8
    asked = manifest["adaptations"]["model"]
    assert asked["with at most 2 pictures, evenly spread"] == 2 + 8 * 2
    assert asked["without temperature"] == manifest["calls"]["made"] == len(server.answered)
    assert manifest["calls"]["failed"]["rejected"] == len(server.bodies) - len(server.answered)
    assert "asked: model with at most 2 pictures, evenly spread" in built.stdout

    again = build_with(server, films, tmp_path / "dataset")
    assert again.returncode == 0
    resumed = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert (resumed["calls"]["made"], resumed["adaptations"]) == (0, manifest["adaptations"])
    assert resumed["dataset_hash"] == manifest["dataset_hash"]


def test_a_server_that_rejects_everything_ends_the_build_and_loses_nothing(
    server: Any, films: Path, tmp_path: Path
) -> None:
    server.fail = lambda body, times: (400, {}, b'{"error": {"message": "logit_bias not supported"}}')
    failed(build_with(server, films, tmp_path / "dataset"), 1, "logit_bias not supported")
    assert len(server.bodies) < 10
    server.fail = lambda body, times: None
    built = build_with(server, films, tmp_path / "dataset")
    assert (built.returncode, "questions: 8 of 8 kept" in built.stdout) == (0, True)


def test_a_build_that_keeps_nothing_fails_and_says_why(server: Any, films: Path, tmp_path: Path) -> None:
    thinking = {"finish_reason": "length", "message": {"content": "", "reasoning_content": "hm"}}
    server.reply = lambda body: thinking
    built = build_with(server, films, tmp_path / "dataset")
    failed(built, 1, "none of 8 questions was kept: 8 times no captions; 2 times the description of a segment")
    assert "raise --captions.max-tokens" in built.stderr
    dropped = json.loads((tmp_path / "dataset" / "dropped.jsonl").read_text().splitlines()[0])
    assert (dropped["reason"], "raise max_tokens" in dropped["detail"]) == ("caption_only_reasoning", True)


def test_a_filter_that_keeps_nothing_fails_and_says_why(server: Any, films: Path, tmp_path: Path) -> None:
    assert build_with(server, films, tmp_path / "dataset", "--filter", "none").returncode == 0
    told = (*("--base-url", server.base_url, "--model", "model", "--num-samples", "2", "--conditions"), "blind", "full")
    server.reply = lambda body: {"finish_reason": "length", "message": {"content": "", "reasoning": "hm"}}
    failed(in_process("filter", tmp_path / "dataset", *told), 1, "8 times unmeasured (blind: 2 only_reasoning of 2")
    for path in ("records.parquet", "unfiltered.parquet", "filters.json"):
        assert (tmp_path / "dataset" / path).exists()


COMMANDS = ["timeline", "build", "filter", "check", "stats", "view", "export", "import"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    result = in_process(name, "--help")
    assert result.returncode == 0
    assert f"Example: longvideo-data {name}" in result.stdout


LAUNCH = [sys.executable, "-m", "longvideo_reason_data"]


def hear_interruptions() -> None:
    """For a new process: a process started in the background of a script inherits ignored interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "asking", "twice"])
def test_an_interruption_is_one_line(server: Any, films: Path, tmp_path: Path, moment: str) -> None:
    server.delay_seconds = 0.5
    told = ("--output", tmp_path / "dataset", "--base-url", server.base_url, "--model", "model")
    with subprocess.Popen(
        [*LAUNCH, "build", "--videos", films, *told],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interruptions,
    ) as process:
        if moment == "loading":
            maps = Path(f"/proc/{process.pid}/maps")
            while "pydantic_core" not in maps.read_text():  # while libraries are loading
                time.sleep(0.005)
        else:
            while not server.num_parallel:
                time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        if moment == "twice":
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1] == "interrupted; start the same command again to go on"


@pytest.mark.slow
@pytest.mark.parametrize("num_times", [1, 2])
@pytest.mark.parametrize(("name", "lists_models"), [("says nothing", True), ("body drips", False)])
def test_a_server_that_hangs_does_not_stop_an_interruption(
    films: Path, tmp_path: Path, name: str, lists_models: bool, num_times: int
) -> None:
    with HostileServer(BEHAVIOURS[name].act, lists_models=lists_models) as hanging:
        told = ("--output", tmp_path / "dataset", "--base-url", hanging.base_url, "--model", "model")
        with subprocess.Popen(
            [*LAUNCH, "build", "--videos", films, *told, *(("--timeout-seconds", "3") if num_times == 1 else ())],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_interruptions,
        ) as process:
            while len(hanging.received) < 1 + lists_models:
                time.sleep(0.005)
            begin = time.monotonic()
            for _ in range(num_times):
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        assert time.monotonic() - begin < 20
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1] == "interrupted; start the same command again to go on"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["timeline", "--videos", "10", "--seconds", "16", "--output", "world"]]
)
def test_a_pipe_that_nobody_reads_ends_the_command_quietly(tmp_path: Path, arguments: list[str]) -> None:
    with subprocess.Popen(
        [*LAUNCH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 141
    assert "Error" not in told


@pytest.mark.slow
def test_timeline(tmp_path: Path) -> None:
    made = in_process("timeline", "--output", tmp_path / "world", "--videos", "10", "--seconds", "16", "--scenes", "3")
    assert made.returncode == 0, made.stderr
    numbers = json.loads(in_process("stats", tmp_path / "world").stdout)
    assert numbers["videos_by_split"] == {"held_out": 1, "train_rl": 6, "train_sft": 3}
    before = (tmp_path / "world" / "records.parquet").read_bytes()
    failed(in_process("timeline", "--output", tmp_path / "world", "--seed", "1"), 2, "world: already exists; remove it")
    assert (tmp_path / "world" / "records.parquet").read_bytes() == before


def test_a_timeline_of_few_videos_says_which_splits_have_none(tmp_path: Path) -> None:
    made = in_process("timeline", "--output", tmp_path / "world", "--videos", "1", "--seconds", "8")
    assert made.returncode == 0, made.stderr
    assert "no video in train_sft and held_out: 1 are too few for every split, 10 are enough" in made.stderr


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--videos", "0", "--videos 0: expected 1 or more"),
        ("--videos", "-1", "--videos -1: expected 1 or more"),
        ("--questions-per-video", "0", "--questions-per-video 0: expected 1 or more"),
        ("--seconds", "1", "seconds: Input should be greater than or equal to 8"),
        ("--seconds", "nan", "seconds: Input should be"),
        ("--seconds", "inf", "seconds: Input should be"),
    ],
)
def test_a_timeline_of_nothing(tmp_path: Path, option: str, value: str, words: str) -> None:
    failed(in_process("timeline", "--output", tmp_path / "none", option, value), 2, words)
    assert not (tmp_path / "none").exists()


def test_a_timeline_is_not_rendered_into_another_dataset(tmp_path: Path) -> None:
    (tmp_path / "others" / "videos").mkdir(parents=True)
    (tmp_path / "others" / "responses.jsonl").write_text("")
    failed(in_process("timeline", "--output", tmp_path / "others"), 2, "others: already exists; remove it")
    assert not any((tmp_path / "others" / "videos").iterdir())


def test_wrong_use(server: Any, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it isn't installed
    output = tmp_path / "dataset"
    good = {"--videos": films, "--output": output, "--base-url": server.base_url, "--model": "model"}

    def build(**changes: object) -> subprocess.CompletedProcess[str]:
        merged = {**good, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
        return in_process("build", *(word for pair in merged.items() for word in pair))

    (tmp_path / "empty").mkdir()
    failed(build(videos=tmp_path / "empty"), 2, "no videos in this folder")
    failed(build(videos=tmp_path / "none"), 2, "no such file or folder")
    failed(build(model="nobody"), 2, "doesn't serve 'nobody'")
    failed(build(base_url="http://127.0.0.1:9/v1"), 1, "no server answers there")
    failed(build(prompts=tmp_path / "empty"), 2, "contains no prompts")
    (tmp_path / "file").write_text("")
    failed(build(output=tmp_path / "file" / "below"), 1, "choose another output folder")
    (tmp_path / "bad.mp4").write_text("no video")
    failed(build(videos=tmp_path / "bad.mp4"), 1, "none of the 1 videos can be read")
    failed(build(judge="model"), 2, "expected another one; change --judge")
    failed(build(benchmarks=tmp_path / "none.jsonl"), 2, "no such file")
    failed(build(**{"questions.open_ended_share": "0.5"}), 2, "give --judge")
    failed(build(engine="ray"), 2, "install longvideo-reason-data[ray]")
    assert not (output / "records.parquet").exists()
    for wrong in (
        {"window_seconds": "-1"},
        {"window_seconds": "ten"},
        {"no_such_setting": "1"},
        {"splits.train_sft": "7"},
        {"engine": "spark"},
        {"decoder": "ffmpeg"},
        {"scenes.max_seconds": "3"},
        {"questions.quotas.goal": "-1"},
    ):
        result = build(**wrong)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


WRONG_URLS = (
    *("", "localhost:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://[", "http://[::1", "http://[zz]/v1"),
    *("http://a b/v1", "http://host\n/v1", "http://host:99999/v1", "http://host:0/v1", "http://host:x/v1"),
    *("http://999.1.1.1/v1", "http://\u2603.invalid/v1", "http://host/v1?key=x", "http://host/" + "x" * 70_000),
)


def test_an_address_that_is_none_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("no video")
    for url in WRONG_URLS:
        result = in_process(
            *("build", "--videos", tmp_path, "--output", tmp_path / "dataset", "--model", "model", "--base-url", url)
        )
        failed(result, 2, "not an address of a server; expected http://HOST:PORT/v1")
        assert len(result.stderr.splitlines()) == 1
        assert len(result.stderr) < 250
        assert not (tmp_path / "dataset").exists()


def test_a_password_in_the_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("no video")
    url = "http://user:s3cret@host/v1"
    result = in_process(
        *("build", "--videos", tmp_path, "--output", tmp_path / "dataset", "--model", "model", "--base-url", url)
    )
    failed(result, 2, "put the key into OPENAI_API_KEY")
    assert "s3cret" not in result.stderr


COMMANDS = ["timeline", "build", "filter", "check", "stats", "view", "export", "import"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_choice_is_typed_as_it_is_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    choices = re.findall(r"\{([^{}]*)\}", in_process(name, "--help").stdout)
    words = {word.strip() for group in choices for word in group.split(",")} - {"None", "True", "False"}
    assert bool(words) == (name in ("build", "filter", "export", "import"))
    assert words == {word.lower() for word in words}
    assert name != "build" or set(DecoderName) <= words


@pytest.mark.parametrize("decoder", DecoderName)
def test_a_decoder_is_chosen_by_its_name(decoder: str, tmp_path: Path) -> None:
    result = in_process(
        *("build", "--videos", tmp_path / "none", "--output", tmp_path / "dataset", "--model", "model"),
        *("--base-url", "http://127.0.0.1:9/v1", "--decoder", decoder),
    )
    assert "invalid choice" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_an_empty_key_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").write_text("no video")
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    result = in_process(
        *("build", "--videos", tmp_path, "--output", tmp_path / "dataset", "--model", "model"),
        *("--base-url", "http://127.0.0.1:9/v1"),
    )
    failed(result, 2, "OPENAI_API_KEY is empty; set it to a key, or unset it")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.slow
def test_wrong_datasets(tmp_path: Path) -> None:
    failed(command("check", tmp_path / "none"), 2, "no such folder")
    failed(in_process("check", tmp_path), 2, "no such records file")
    (tmp_path / "records.parquet").write_bytes(b"hello")
    failed(command("stats", tmp_path), 1, "not a readable Parquet file")


@pytest.mark.slow
def test_the_package_needs_no_tensors_and_reading_needs_no_client() -> None:
    modules = "records.record records.answers records.folder media.video_file cli pipeline.build pipeline.ray_stages"
    program = "; ".join(f"import longvideo_reason_data.{name}" for name in modules.split())
    found = "print(sorted({'torch', 'transformers', 'vllm', 'ray', 'decord'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {program}; {found}"], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
    light = "import sys; import longvideo_reason_data.cli; print('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("error", [KeyError("no name"), RuntimeError("first line\nsecond"), AttributeError()])
def test_what_a_library_never_should_have_raised_drops_one_file(
    server: Any, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    opened = av.open

    def fail_for_one(file: str, *arguments: Any, **options: Any) -> Any:
        if "film 1" in str(file):
            raise error
        return opened(file, *arguments, **options)

    monkeypatch.setattr(av, "open", fail_for_one)
    dataset = tmp_path / "dataset"
    result = in_process(
        *("build", "--videos", films, "--output", dataset, "--base-url", server.base_url, "--model", "model"),
        *("--filter", "none"),
    )
    assert result.returncode == 0, result.stderr
    dropped = [json.loads(line) for line in (dataset / "dropped.jsonl").read_text().splitlines()]
    unreadable = [item for item in dropped if item["reason"] == "video_unreadable"]
    assert len(unreadable) == 1
    assert f"film 1.mp4: can't be read ({type(error).__name__}" in unreadable[0]["detail"]
    assert "\n" not in unreadable[0]["detail"]
