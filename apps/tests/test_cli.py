"""The command from the user's side: help at once, and one line for every mistake."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longrl.cli import COMMANDS, main
from longvideo_reason_data.records.record import SCHEMA_VERSION

TINY_RECIPE = Path(__file__).parent / "tiny_quickstart.toml"
RECIPES = Path(__file__).parents[1] / "recipes"
SFT_RECIPE = RECIPES / "qwen2_5_vl_3b_sft.toml"


def assert_one_line(done, code, *parts):
    assert done.returncode == code, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert str(part) in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(longrl, command):
    done = longrl(command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"longrl {command}" in done.stdout


def test_a_pipe_that_nobody_reads_ends_the_command_quietly():
    with subprocess.Popen(
        [sys.executable, "-m", "longrl", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def hear_interruptions() -> None:
    """For a new process: a process started in the background of a script inherits ignored interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interruption_while_the_command_is_loaded_is_one_line(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "longrl", "quickstart", "--output", tmp_path / "run"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interruptions,
    ) as process:
        while "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (stderr, process.returncode) == ("interrupted; start the same command again to go on\n", 130)


def test_every_choice_is_typed_as_it_is_documented(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    words = set()
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        choices = re.findall(r"\{([^{}]*)\}", capsys.readouterr().out)
        words |= {word.strip() for group in choices for word in group.split(",")} - {"None", "True", "False"}
    # Signals have no other names, and this is what a list of texts looks like.
    words -= {*signal.Signals.__members__, "[STR [STR ...]]"}
    assert {"bfloat16", "held_out"} <= words
    assert words == {word.lower() for word in words}


def test_help_is_quick_and_loads_nothing_heavy(longrl):
    code = "import sys, longrl.cli; print({'torch', 'transformers', 'vllm', 'av', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert subprocess.run(longrl.line("--help"), stdout=subprocess.DEVNULL).returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.5


def test_an_unknown_key_in_a_recipe(longrl, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SFT_RECIPE.read_text().replace("epochs", "epoch"))
    assert_one_line(longrl("sft", recipe), 2, recipe, "epoch: unknown key; did you mean 'epochs'?")


def test_a_wrong_type_in_a_recipe(longrl, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SFT_RECIPE.read_text().replace("epochs = 2", 'epochs = "two"'))
    assert_one_line(longrl("sft", recipe), 2, recipe, 'epochs: got "two", expected: integer')


def test_a_missing_recipe(longrl, tmp_path):
    assert_one_line(longrl("grpo", tmp_path / "none.toml"), 2, "none.toml: there is no such recipe")
    assert_one_line(longrl("grpo"), 2, "longrl grpo needs a recipe")


def test_a_value_out_of_range_on_the_command_line(longrl):
    assert_one_line(longrl("sft", SFT_RECIPE, "--epochs", "0"), 2, "--epochs 0: expected greater than")


def test_an_unknown_option(longrl):
    done = longrl("sft", SFT_RECIPE, "--epochz", "3")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_output_that_cannot_be_written(longrl, tmp_path):
    (tmp_path / "file").write_text("")
    done = longrl("quickstart", "--recipe", TINY_RECIPE, "--output", tmp_path / "file" / "run")
    assert_one_line(done, 2, tmp_path / "file" / "run", "choose another --output")


def test_a_negative_seed(longrl, tmp_path):
    assert_one_line(longrl("quickstart", "--seed", "-1", "--output", tmp_path / "run"), 2, "--seed -1")


def training_options(finished, output):
    return (
        *("--dtype", "float32", "--output", output, "--data.num-frames", "4"),
        *("--model.folder", finished.folder / "model", "--model.store", finished.folder / "embeddings"),
        *("--data.dataset", finished.folder / "dataset"),
    )


@pytest.mark.slow
def test_a_checkpoint_of_another_family(longrl, finished, tmp_path):
    stranger = tmp_path / "stranger"
    shutil.copytree(finished.folder / "model", stranger)
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    options = training_options(finished, tmp_path / "out")
    done = longrl("sft", SFT_RECIPE, *options, "--model.folder", stranger)
    assert_one_line(done, 2, stranger, "'gpt2'")


@pytest.mark.slow
def test_a_dataset_of_another_version(longrl, finished, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(finished.folder / "dataset", dataset)
    table = pq.read_table(dataset / "records.parquet")
    metadata = {key: b"99" if b"version" in key else value for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), dataset / "records.parquet")
    options = training_options(finished, tmp_path / "out")
    done = longrl("sft", SFT_RECIPE, *options, "--data.dataset", dataset)
    assert_one_line(done, 2, "version 99", str(SCHEMA_VERSION))


@pytest.mark.slow
def test_separate_stages_run_on_any_data(longrl, finished, tmp_path):
    done = longrl("sft", SFT_RECIPE, *training_options(finished, tmp_path / "sft"), "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "sft" / "model") in done.stdout
    options = (
        *("--model.folder", tmp_path / "sft" / "model", "--model.store", finished.folder / "embeddings"),
        *("--data.dataset", finished.folder / "dataset", "--data.split", "held_out", "--data.num-frames", "4"),
        *("--output", tmp_path / "accuracy.json", "--max-response-tokens", "8", "--sampler.engine", "transformers"),
    )
    done = longrl("evaluate", *options)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert json.loads((tmp_path / "accuracy.json").read_text())["count"] == 4


@pytest.mark.slow
def test_a_tiny_model_needs_no_data(longrl, tmp_path):
    sizes = ("--hidden-size", "64", "--num-heads", "2", "--num-key-value-heads", "1", "--num-layers", "1")
    done = longrl("tiny-model", "--output", tmp_path / "model", *sizes)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert_one_line(longrl("tiny-model", "--output", tmp_path / "model", *sizes), 2, "not an empty folder")


@pytest.mark.slow
def test_a_tiny_model_of_another_family(longrl, tmp_path):
    done = longrl("tiny-model", "--output", tmp_path / "model", "--family", "vila")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "mm_projector" / "model.safetensors").is_file()
    refused = longrl("tiny-model", "--output", tmp_path / "other", "--family", "vila", "--hidden-size", "64")
    assert_one_line(refused, 2, "--family vila: has fixed sizes")
    assert_one_line(longrl("tiny-model", "--output", tmp_path / "other", "--family", "x"), 2, "expected one of qwen2")


@pytest.mark.slow
def test_videos_are_encoded_and_unusable_ones_reported(longrl, finished, tmp_path):
    films = tmp_path / "films"
    shutil.copytree(finished.folder / "dataset" / "videos", films)
    (films / "empty.mp4").write_bytes(b"")
    options = ("--model", finished.folder / "model", "--store", tmp_path / "store", "--num-frames", "4")
    done = longrl("encode", films, *options)
    assert done.returncode == 1
    assert "7 videos, 7 newly encoded" in done.stdout
    assert "dropped: " in done.stderr
    assert "error: 1 of 8 videos can't be used" in done.stderr
    (films / "empty.mp4").unlink()
    again = longrl("encode", films, *options)
    assert again.returncode == 0
    assert "7 videos, 0 newly encoded" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("missing.mp4", None, 2), ("empty.mp4", b"", 1), ("text.mp4", b"no video at all\n" * 99, 1), ("folder", "", 2)],
)
def test_a_file_that_is_no_video(longrl, tmp_path, name, content, code):
    path = tmp_path / name
    if content == "":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert_one_line(longrl("encode", path, "--model", tmp_path), code, path)


def test_a_report_of_something_else(longrl, tmp_path):
    assert_one_line(longrl("report", tmp_path), 2, tmp_path, "no run")


@pytest.mark.slow
def test_a_report_is_written_anew(longrl, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "report.html").unlink()
    done = longrl("report", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_interrupting_exits_with_130(longrl, tmp_path):
    process = longrl.start("quickstart", "--recipe", TINY_RECIPE, "--output", tmp_path / "run")
    while not (tmp_path / "run" / "stages" / "world.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(2)
    messages = process.communicate()[1]
    assert process.returncode == 130, messages
    assert "interrupted; start the same command again to go on" in messages
    assert "Traceback" not in messages


@pytest.mark.parametrize("name", ["x" * 5000, "a\nerror: forged", "\x1b[2Jgone", "\u202eturned"])
def test_what_is_wrong_is_one_line_whatever_it_names(name, tmp_path, capsys):
    for arguments in (["plan", "--model", name], ["store", "stats", name], ["sft", f"{name}.toml"]):
        assert main(arguments) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) < 400
        assert line.isprintable()
        assert line.startswith("error: ")
