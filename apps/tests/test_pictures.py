"""The quickstart's world of pictures with tiny settings, and the commands of generation."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from changed_recipes import write_changed

from longrl.cli import main
from longrl.pictures.config import PICTURES_RECIPE, load_pictures

TINY_RECIPE = """
[captions]
train_captions = 8
held_out_captions = 3
most_things = 2
[pretraining]
steps = 3
pictures_per_step = 4
[rl]
algorithm = "mix_grpo"
steps = 2
prompts_per_step = 2
group_size = 2
window_steps = 1
learning_rate = 1e-3
held_out_reward = "likeness"
evaluation_samples = 2
[rl.rewards]
checker = 1.0
accuracy = 0.0
[rl.sampling]
steps = 3
samples_per_pass = 4
"""
write_recipe = partial(write_changed, TINY_RECIPE)


@pytest.mark.slow
def test_the_world_of_pictures_from_beginning_to_end(tmp_path, capsys):
    output, recipe = tmp_path / "pictures", write_recipe(tmp_path)
    arguments = ["quickstart", "--world", "pictures", "--output", str(output), "--recipe", str(recipe), "--seed", "1"]
    assert main(arguments) == 0
    summary = json.loads((output / "report.json").read_text())
    assert summary["algorithm"] == "mix_grpo"
    assert summary["seed"] == 1
    assert summary["samples"] == 8
    assert summary["captions"] == {"train": 8, "held_out": 3}
    for name in ("checker_accuracy", "held_out_reward"):
        assert set(summary[name]) == {"before", "after"}
        assert all(0 <= value <= 1 for value in summary[name].values())
    assert set(summary["seconds"]) == {"captions", "pretraining", "rl", "total"}
    assert summary["seconds"]["total"] == pytest.approx(sum(summary["seconds"].values()) / 2)
    assert summary["ratio_error"] == 0.0
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * 2 * 2
    for caption in (output / "captions" / "held_out_prompts.txt").read_text().split("\n"):
        assert caption in page
    assert not set((output / "captions" / "prompts.txt").read_text().splitlines()) & set(
        (output / "captions" / "held_out_prompts.txt").read_text().splitlines()
    )
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("reused") == 4

    compared = ["benchmark", "generation", "--world", str(output), "--recipe", str(recipe)]
    assert main([*compared, "--output", str(tmp_path / "compared"), "--algorithms", "awm", "flow_grpo"]) == 0
    rows = json.loads((tmp_path / "compared" / "generation.json").read_text())
    assert [(row["algorithm"], row["samples"]) for row in rows] == [("awm", 8), ("flow_grpo", 8)]
    assert rows[0]["accuracy_before"] == rows[1]["accuracy_before"]
    assert main([*compared[:3], str(tmp_path), *compared[4:]]) == 2

    samples = tmp_path / "generate.toml"
    samples.write_text(
        f'output = "{tmp_path / "samples"}"\nprompts = "{output / "captions" / "held_out_prompts.txt"}"\n'
        f'[model]\nfolder = "{output / "rl" / "model"}"\n[rewards]\naccuracy = 1.0\n[sampling]\nsteps = 2\n'
    )
    assert main(["generate", str(samples), "--samples-per-prompt", "2"]) == 0
    assert len(list((tmp_path / "samples").glob("*.png"))) == 6

    training = tmp_path / "training.toml"
    training.write_text(
        f'output = "{tmp_path / "run"}"\nprompts = "{output / "captions" / "prompts.txt"}"\n'
        f'held_out_prompts = "{output / "captions" / "held_out_prompts.txt"}"\nheld_out_reward = "likeness"\n'
        'steps = 1\nprompts_per_step = 1\ngroup_size = 2\nlearning_rate = 1e-3\nalgorithm = "dgpo"\n'
        f'[model]\nfolder = "{output / "model"}"\n[rewards]\nchecker = 1.0\n[sampling]\nsteps = 2\n'
    )
    capsys.readouterr()
    assert main(["generate-grpo", str(training), "--noise-levels-per-sample", "1"]) == 0
    assert "1 steps, sampler against policy 0.0e+00" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0
    content = json.loads(re.search(r'id="content">(.*?)</script>', (tmp_path / "run" / "report.html").read_text())[1])
    assert content["stage"] == "generate-grpo"
    assert content["state"]["is_finished"]
    assert content["state"]["panels"][0]["names"] == ["reward", "rewards.checker", "rewards.likeness"]
    assert (
        content["state"]["steps"][0]["reward"]
        == json.loads((tmp_path / "run" / "result.json").read_text())["rewards"][0]
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"mix_grpo"', '"ppo"', "rl.algorithm: got \"ppo\", expected: 'flow_grpo'"),
        ("group_size = 2", "group_size = 1", "rl.group_size: got 1, expected: greater than or equal to 2"),
        ("train_captions = 8", "train_captions = 800", "803 different captions of up to 2 things of a kind"),
        ("accuracy = 0.0", "", "rl.rewards.accuracy: missing"),
        ("window_steps = 1", "window_steps = 3", "window_steps=3: expected at most 2"),
        (
            "[rl.sampling]",
            "[algorithms.ppo]\n[rl.sampling]",
            "algorithms.ppo: there is no such algorithm; expected one",
        ),
        ("[captions]", "algorithms = 3\n[captions]", "algorithms: expected a table for each algorithm"),
        ("[rl]", "[rl]\nseed = 3", "rl.seed: the quickstart sets this itself; remove the line"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, capsys, old, new, message):
    recipe = write_recipe(tmp_path, old=old, new=new)
    arguments = ["quickstart", "--world", "pictures", "--output", str(tmp_path / "out"), "--recipe", str(recipe)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_the_table_of_the_chosen_algorithm_counts_and_no_other(tmp_path):
    tables = """
[algorithms.awm]
learning_rate = 2e-3
rewards = { checker = 2.0 }
[algorithms.mix_grpo]
group_size = 4
"""
    recipe = write_recipe(tmp_path, old="[rl.sampling]", new=f"{tables}[rl.sampling]")
    own, other, third = (
        load_pictures(recipe, output=tmp_path, seed=3, algorithm=name).rl for name in (None, "awm", "dgpo")
    )
    assert (own.algorithm, own.group_size, own.learning_rate, own.rewards["checker"]) == ("mix_grpo", 4, 1e-3, 1.0)
    assert (other.algorithm, other.group_size, other.learning_rate, other.rewards) == (
        ("awm", 2, 2e-3, {"checker": 2.0, "accuracy": 0.0})
    )
    assert (third.algorithm, third.group_size, third.learning_rate) == ("dgpo", 2, 1e-3)
    assert own.seed == other.seed == 3


def test_an_algorithm_is_for_the_world_of_pictures_only(tmp_path, capsys):
    assert main(["quickstart", "--output", str(tmp_path / "out"), "--algorithm", "awm"]) == 2
    assert "--algorithm awm: expected --world pictures, or an `objective`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shipped_recipe_evaluates_enough_pictures(tmp_path):
    config = load_pictures(PICTURES_RECIPE, output=tmp_path, seed=3)
    assert config.rl.seed == 3
    assert config.rl.model.folder == tmp_path / "model"
    assert config.captions.held_out_captions * config.rl.evaluation_samples >= 192


def test_a_quickstart_leaves_the_folder_of_another_world_alone(tmp_path, capsys):
    recipes = {"pictures": write_recipe(tmp_path), "timeline": Path(__file__).parent / "tiny_quickstart.toml"}
    for world, first_stage in (("pictures", "world"), ("timeline", "captions")):
        output = tmp_path / world
        (output / "stages").mkdir(parents=True)
        (output / "stages" / f"{first_stage}.started.json").write_text("{}")
        (output / "report.json").write_text("of the other world")
        arguments = ["quickstart", "--world", world, "--recipe", str(recipes[world]), "--output", str(output)]
        assert main(arguments) == 2
        assert f"{output} contains another pipeline (stage `{first_stage}`)" in capsys.readouterr().err
        assert {path.name for path in output.iterdir()} == {"stages", "report.json"}


def test_a_report_of_a_world_of_pictures_names_the_command_that_writes_it(tmp_path, capsys):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "captions.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert f"`longrl quickstart --world pictures --output {tmp_path}`" in capsys.readouterr().err
