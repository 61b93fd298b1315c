"""The quickstart's world of sound with tiny settings: every stage, and what is asked without sound and pictures."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from changed_recipes import write_changed

from longrl.cli import main
from longrl.quickstart.config import SOUND_RECIPE, load_quickstart
from longrl.watch.watched_pipeline import WatchedPipeline
from longvideo_reason_data.records.record import read_records

TINY_RECIPE = """
[world]
sound = true
seconds = 8.0
num_scenes = 3
scene_seconds = 1.0
frames_per_second = 1
size_pixels = 64
train_sft_videos = 2
train_rl_videos = 1
held_out_videos = 2
questions_per_video = 7
[model]
hidden_size = 64
num_layers = 2
num_heads = 2
num_key_value_heads = 1
intermediate_size = 128
vocabulary_size = 512
vision_hidden_size = 32
vision_num_heads = 2
vision_depth = 1
frame_pixels = 3136
audio_hidden_size = 32
audio_depth = 1
[sft]
epochs = 1
rows_per_step = 2
learning_rate = 3e-3
[sft.data]
num_frames = 4
sound = true
[grpo]
steps = 2
prompts_per_step = 2
group_size = 2
learning_rate = 1e-3
max_response_tokens = 6
[grpo.data]
num_frames = 4
sound = true
[grpo.sampler]
engine = "transformers"
[evaluation]
num_frames = [4]
train_rl_limit = 2
"""
write_recipe = partial(write_changed, TINY_RECIPE)


@pytest.mark.slow
def test_the_world_of_sound_from_beginning_to_end(tmp_path, capsys):
    output = tmp_path / "sound"
    arguments = ["quickstart", "--world", "sound", "--recipe", str(write_recipe(tmp_path)), "--output", str(output)]
    assert main(arguments) == 0
    summary = json.loads((output / "report.json").read_text())
    asked = [record for record in read_records(output / "dataset" / "records.parquet") if record.split == "held_out"]
    assert set(summary["accuracy_by_senses"]) == {"both", "sound", "picture"}
    for senses, models in summary["accuracy_by_senses"].items():
        assert list(models) == ["grpo", "sound-off", "picture-off", "blind"]
        for found in models.values():
            assert found["questions"] == sum(record.senses == senses for record in asked)
            assert 0 <= found["accuracy"] <= 1
    assert summary["encodes"] == 5 + 5  # every film's pictures once, and its sound
    assert summary["logprob_gap"]["mean_abs"] <= 1e-5
    shown = {
        name: json.loads((output / "evaluations" / name / "4-frames.json").read_text())["settings"]
        for name in ("grpo", "sound-off", "picture-off", "blind")
    }
    said = [(found["data"]["pictures"], found["data"]["sound"], found["blind"]) for found in shown.values()]
    assert said == [(True, True, False), (True, False, False), (False, True, False), (True, True, True)]
    assert "Seeing and hearing" in (output / "report.html").read_text()
    config = json.loads((output / "grpo" / "model" / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_omni"
    stages = WatchedPipeline(output).state()["stages"]
    assert [stage["name"] for stage in stages][-3:] == ["evaluate-sound-off", "evaluate-picture-off", "report"]
    assert all(stage["status"] == "finished" for stage in stages)
    assert "needs both" in capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("reused") == len(stages)
    shutil.rmtree(output / "evaluations" / "picture-off")
    assert main(arguments) == 0
    redone = [line for line in capsys.readouterr().err.splitlines() if "redo" in line]
    assert [line.partition(":")[0] for line in redone] == ["evaluate-picture-off"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("audio_hidden_size = 32", "", "model.audio_hidden_size is not set with world.sound=true"),
        ("sound = true\n[grpo]", "[grpo]", "sft.data.sound is not set with world.sound=true"),
        ("[world]\nsound = true", "[world]", "sft.data.sound is set with world.sound=false"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, capsys, old, new, message):
    recipe = write_recipe(tmp_path, old=old, new=new)
    arguments = ["quickstart", "--world", "sound", "--output", str(tmp_path / "out"), "--recipe", str(recipe)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_recipe_of_another_world_is_refused(tmp_path, capsys):
    recipe = Path(__file__).parent / "tiny_quickstart.toml"
    arguments = ["quickstart", "--world", "sound", "--output", str(tmp_path / "out"), "--recipe", str(recipe)]
    assert main(arguments) == 2
    assert "world.sound=false with --world sound; choose --world timeline" in capsys.readouterr().err


def test_the_shipped_recipe_asks_enough_questions_that_need_both(tmp_path):
    config = load_quickstart(SOUND_RECIPE, output=tmp_path, seed=3)
    assert config.world.held_out_videos * (config.world.questions_per_video - 2) >= 150
