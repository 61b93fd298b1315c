"""CoT-SFT: it learns, the shared prompt changes nothing, every question is seen once per epoch."""

import dataclasses
import math

import pytest

from longrl_trainer.questions.candidates import Candidates, TextRules
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.order import Cursor
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import count_scored_tokens, order_rows, pack_questions, train_sft
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.records.answers import format_prompt, format_response, parse_response


def test_a_row_is_the_ordinary_prompt_and_response_of_each_question(world, tmp_path):
    config = world.sft(tmp_path, data__system="Watch closely.")
    policy = open_policy(config.model, "float32")
    questions = load_questions(config.data, policy, progress=SilentProgress()).kept[:2]
    row = pack_questions(policy, questions, config)
    for question, branch in zip(questions, row.branches, strict=True):
        record = question.record
        whole = policy.build_prompt(
            format_prompt(record.question, record.options), question.media, system="Watch closely."
        )
        tail, response = branch.token_ids[: branch.scored_from], branch.token_ids[branch.scored_from :]
        assert row.prompt.expanded_ids + tail == whole.expanded_ids
        assert policy.tokenizer.decode(response[:-1]) == format_response(record.reasoning, record.answer)
        assert response[-1] == policy.tokenizer.eos_token_id
        assert response[-1] in policy.end_token_ids


def test_the_answer_can_be_the_option_itself(world, tmp_path):
    config = world.sft(tmp_path, answer_form="text")
    policy = open_policy(config.model, "float32")
    questions = load_questions(config.data, policy, progress=SilentProgress()).kept[:2]
    for question, branch in zip(questions, pack_questions(policy, questions, config).branches, strict=True):
        record = question.record
        written = policy.tokenizer.decode(branch.token_ids[branch.scored_from : -1])
        option = record.options["ABCD".index(record.answer)]
        assert written == format_response(record.reasoning, option)
        assert parse_response(written, record.options).letter == record.answer


def test_a_blind_row_is_the_same_without_its_video(world, tmp_path):
    config = world.sft(tmp_path)
    policy = open_policy(config.model, "float32")
    questions = load_questions(config.data, policy, progress=SilentProgress()).kept[:2]
    hidden = [dataclasses.replace(question, media=()) for question in questions]
    seeing, blind = (pack_questions(policy, shown, config) for shown in (questions, hidden))
    assert not blind.prompt.media
    assert blind.prompt.length < seeing.prompt.length
    assert count_scored_tokens(blind) == count_scored_tokens(seeing)


def walk(candidates, config):
    """The items of every step of a run in which nothing is dropped, with their epochs."""
    order = order_rows(candidates, config)
    cursor, steps = Cursor(), []
    while (taken := order.select(cursor, lambda _: False)).items:
        assert order.place_in_schedule(taken) == len(steps)
        steps.append((taken.first.epoch, taken.items))
        cursor = taken.after
    return steps


@pytest.fixture
def candidates(world, tmp_path):
    config = world.sft(tmp_path)
    rules = TextRules.of(open_policy(config.model, "float32"), learn_responses=True)
    with Candidates(config.data, rules) as found:
        yield found


def test_every_epoch_sees_every_question_once_in_a_new_order(world, candidates, tmp_path):
    config = world.sft(tmp_path, questions_per_row=1, rows_per_step=3, epochs=3)
    steps = walk(candidates, config)
    assert [(epoch, len(items)) for epoch, items in steps] == [(e, size) for e in range(3) for size in (3, 3, 2)]
    orders = [[place for e, items in steps if e == epoch for (place,) in items] for epoch in range(3)]
    assert all(sorted(seen) == list(range(8)) for seen in orders)
    assert orders[0] != orders[1] != orders[2]
    assert steps == walk(candidates, config)


def test_questions_of_one_video_share_rows_of_the_size_asked_for(world, candidates, tmp_path):
    rows = [row for _, items in walk(candidates, world.sft(tmp_path, questions_per_row=2, epochs=1)) for row in items]
    assert [len(row) for row in rows] == [2] * 4
    assert all(len({candidates.media[place] for place in row}) == 1 for row in rows)


def test_sharing_the_prompt_changes_neither_loss_nor_gradient(world, tmp_path):
    lines = []
    for share_prompt in (True, False):
        config = world.sft(tmp_path / str(share_prompt), share_prompt=share_prompt, dtype="float64", epochs=1)
        train_sft(config)
        lines.append(read_json_lines(config.output / "metrics.jsonl"))
    assert len(lines[0]) == 2
    # The model's norms round to float32 inside, whatever its dtype; the engine's own tests compare more closely.
    for shared, plain in zip(*lines, strict=True):
        assert shared["loss"] == pytest.approx(plain["loss"], rel=1e-7)
        assert shared["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-7)


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_however_rows_are_cut(world, tmp_path):
    losses = []
    for questions_per_row, rows_per_step in ((2, 4), (1, 8)):
        config = world.sft(
            tmp_path / str(rows_per_step),
            questions_per_row=questions_per_row,
            rows_per_step=rows_per_step,
            dtype="float64",
            epochs=1,
        )
        train_sft(config)
        losses.append(read_json_lines(config.output / "metrics.jsonl")[0])
    assert losses[0]["tokens"] == losses[1]["tokens"]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-7)
    assert losses[0]["gradient_norm"] == pytest.approx(losses[1]["gradient_norm"], rel=1e-7)


@pytest.mark.slow
def test_a_small_set_is_learned_by_heart(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=120, rows_per_step=4, learning_rate=1e-2, checkpoint_every_steps=1000)
    result = train_sft(config)
    losses = [line["loss"] for line in read_json_lines(config.output / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(300), rel=0.3)
    assert result.final_loss == losses[-1] < 0.05
    assert result.questions == {"input": 8, "kept": 8, "dropped": {}}
    reloaded = open_policy(config.model.model_copy(update={"folder": result.model_folder}), "float32")
    again = world.sft(tmp_path / "again", epochs=1, rows_per_step=4, learning_rate=1e-9)
    train_sft(again, policy=reloaded)
    assert read_json_lines(again.output / "metrics.jsonl")[0]["loss"] < 0.05


@pytest.mark.slow
def test_only_the_language_model_is_trained(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=1)
    before = open_policy(config.model, "float32").model.state_dict()
    trained = train_sft(config)
    after = open_policy(config.model.model_copy(update={"folder": trained.model_folder}), "float32").model.state_dict()
    changed = {name for name, value in before.items() if not (value == after[name]).all()}
    assert changed
    assert not any("visual" in name for name in changed)
