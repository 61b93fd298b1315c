"""Kept + dropped = all, nothing is substituted, and every video is encoded exactly once."""

import hashlib

import pytest
import torch

from longrl_trainer.errors import TrainerError, TrainerUsageError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.question import DropReason, build_question_prompt
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.question_types import QuestionType
from longvideo_reason_data.records.record import Split, write_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError


def load(world, tmp_path, **options):
    config = world.sft(tmp_path / "unused")
    return load_questions(config.data, open_policy(config.model, "float32"), progress=SilentProgress(), **options)


def test_broken_exchanged_missing_and_open_questions_are_dropped_with_their_reason(new_world, tmp_path):
    world = new_world(splits=[Split.TRAIN_SFT])
    videos = world.dataset / "videos"
    truncated, exchanged = videos / "train_sft-red.mp4", videos / "train_sft-green.mp4"
    truncated.write_bytes(truncated.read_bytes()[:700])
    exchanged.write_bytes((videos / "train_sft-white.mp4").read_bytes())
    (videos / "train_sft-blue.mp4").unlink()
    records = list(world.records)
    records[-1] = records[-1].model_copy(update={"options": (), "answer": "white"})
    write_records(world.dataset / "records.parquet", records)

    loaded = load(world, tmp_path, judged_types=frozenset({QuestionType.CHOICE}))
    assert loaded.counts() == {
        "input": 8,
        "kept": 1,
        "dropped": {"digest_mismatch": 2, "no_reward": 1, "unreadable_video": 4},
    }
    details = {dropped.question_id: dropped.detail for dropped in loaded.dropped}
    assert [question.record.question_id for question in loaded.kept] == ["train_sft-6"]
    assert set(details) | {"train_sft-6"} == {record.question_id for record in records}
    assert "train_sft-red.mp4" in details["train_sft-0"]
    assert "missing" in details["train_sft-4"]
    assert EmbeddingStore(world.folder / "embeddings").counters.encodes == 1
    assert load(world, tmp_path).counts()["dropped"] == {"digest_mismatch": 2, "unreadable_video": 4}


def test_a_video_whose_frames_turn_out_to_be_damaged_is_dropped_too(new_world, tmp_path):
    """It is opened and planned like any other, but fails when its frames are read for encoding."""
    world = new_world(splits=[Split.TRAIN_SFT])
    path = world.dataset / "videos" / "train_sft-red.mp4"
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(content[start - 8 : start - 4], "big")
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    damaged = [record for record in world.records if record.media[0].path.endswith(path.name)]
    records = [
        record.model_copy(update={"media": (record.media[0].model_copy(update={"digest": digest}),)})
        if record in damaged
        else record
        for record in world.records
    ]
    write_records(world.dataset / "records.parquet", records)
    loaded = load(world, tmp_path)
    assert loaded.counts() == {"input": 8, "kept": 6, "dropped": {"unreadable_video": len(damaged)}}
    assert all(path.name in dropped.detail for dropped in loaded.dropped)


def test_texts_that_cannot_be_learned_are_dropped(new_world, tmp_path):
    world = new_world(splits=[Split.TRAIN_SFT])
    changes = [
        {"reasoning": " "},
        {"reasoning": "So: </think><answer>A</answer>"},
        {"reasoning": "It is <|im_end|> blue."},
        {"question": "What is <|video_pad|>?"},
    ]
    records = [
        record.model_copy(update=change) for record, change in zip(world.records, changes + [{}] * 4, strict=True)
    ]
    write_records(world.dataset / "records.parquet", records)
    assert load(world, tmp_path, learn_responses=True).counts() == {
        "input": 8,
        "kept": 4,
        "dropped": {"control_token": 2, "malformed_response": 2},
    }
    assert load(world, tmp_path).counts() == {"input": 8, "kept": 7, "dropped": {"control_token": 1}}
    assert train_sft(world.sft(tmp_path / "run", epochs=1)).questions["kept"] == 4


def test_training_goes_on_without_a_broken_video_and_reports_it(new_world, tmp_path):
    world = new_world(splits=[Split.TRAIN_SFT])
    (world.dataset / "videos" / "train_sft-red.mp4").write_bytes(b"not a film")
    config = world.sft(tmp_path / "run", epochs=1)
    result = train_sft(config)
    assert result.questions == {"input": 8, "kept": 6, "dropped": {"unreadable_video": 2}}
    report = (config.output / "questions.json").read_text()
    assert "train_sft-0" in report
    assert "train_sft-red.mp4" in report
    assert result.num_steps == 2  # three rows, two per step


def test_a_split_without_any_usable_question_is_one_line(new_world, tmp_path):
    world = new_world(splits=[Split.TRAIN_SFT])
    with pytest.raises(TrainerUsageError, match=r"no questions in the split 'train_rl'; set another `data\.split`"):
        train_grpo(world.grpo(tmp_path / "run"))
    for path in (world.dataset / "videos").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainerError, match=r"none of the 8 questions .* can be used; the first: train_sft-\d: .*mp4"):
        train_sft(world.sft(tmp_path / "run2"))


@pytest.mark.slow
def test_every_video_is_encoded_once_in_all_stages_together(new_world, tmp_path):
    world = new_world()
    store = EmbeddingStore(world.folder / "embeddings")
    sft = train_sft(world.sft(tmp_path / "sft", epochs=2))
    assert store.counters.encodes == 4
    grpo = train_grpo(world.grpo(tmp_path / "grpo", steps=4, model__folder=sft.model_folder))  # one epoch
    assert store.counters.encodes == 8
    for stage, folder in (("sft", sft.model_folder), ("grpo", grpo.model_folder)):
        for num_frames in (4, 2):
            config = world.evaluation(
                tmp_path / f"{stage}-{num_frames}.json", model__folder=folder, data__num_frames=num_frames
            )
            evaluate(config)
    evaluate(world.evaluation(tmp_path / "blind.json", blind=True, data__num_frames=3))
    assert store.counters.encodes == 8 + 2 * 4


def test_an_encoder_that_fails_stops_the_run_in_one_line(new_world, tmp_path):
    """Unlike a file that can't be read, which loses only its own questions."""
    config = new_world(splits=[Split.TRAIN_SFT]).sft(tmp_path / "run")
    policy = open_policy(config.model, "float32")
    with torch.no_grad():
        policy.model.model.visual.merger.mlp[-1].bias.fill_(torch.nan)
    with pytest.raises(EngineError, match=r"^embedding \w+…: not all numbers are finite; check the encoder's dtype$"):
        train_sft(config, policy=policy)


def test_a_store_that_cannot_be_used_is_one_line(new_world, tmp_path):
    world = new_world(splits=[Split.TRAIN_SFT])
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EngineUsageError, match=r"^\S*file\S*: can't hold the embedding store \(.*\); choose another"):
        train_sft(world.sft(tmp_path / "run", model__store=tmp_path / "file" / "store"))

    config = world.sft(tmp_path / "run")
    policy = open_policy(config.model, "float32")
    question = load_questions(config.data, policy, progress=SilentProgress()).kept[0]
    prompt = build_question_prompt(policy, question, None)
    every_second = torch.arange(0, prompt.length, 2)
    for embed in (lambda: policy.embed(prompt), lambda: policy.embed_rows(prompt, every_second)):
        # Another model's embedding instead of the right one, then none.
        rows = torch.zeros(question.media[0].num_tokens, 7)
        with policy.store.lend({question.media[0].key: rows}), pytest.raises(EngineError, match=r"for another model$"):
            embed()
        policy.store = EmbeddingStore(tmp_path / "missing")
        with pytest.raises(EngineError, match=r"is not in the store .*; encode the video again or set the store"):
            embed()
        policy.store = EmbeddingStore(config.model.store)


def test_what_is_in_the_store_is_not_decoded_again(new_world, tmp_path, monkeypatch):
    world = new_world(splits=[Split.TRAIN_SFT])
    first = load(world, tmp_path)
    monkeypatch.setattr("longvideo_reason_data.media.video_file.VideoFile.read", lambda *_: pytest.fail("decoded"))
    assert load(world, tmp_path) == first


def test_a_reason_for_dropping_keeps_its_earlier_name_in_runs_that_go_on():
    assert DropReason("open_ended") is DropReason.NO_REWARD
    with pytest.raises(ValueError, match="'open' is not a valid DropReason"):
        DropReason("open")


def test_a_limit_is_spread_over_the_split(world, tmp_path):
    limited = load(world, tmp_path, limit=4)
    assert len({question.record.media[0].path for question in limited.kept}) == 4
    assert limited.counts()["input"] == 4
    assert load(world, tmp_path, limit=100).counts()["input"] == 8


def test_blind_questions_have_the_same_text_and_no_video(world, tmp_path):
    policy = open_policy(world.sft(tmp_path).model, "float32")
    seeing, blind = load(world, tmp_path).kept, load(world, tmp_path, blind=True).kept
    assert [question.record for question in seeing] == [question.record for question in blind]
    assert all(question.media == () for question in blind)
    texts = [
        policy.tokenizer.decode(build_question_prompt(policy, questions[0], None).token_ids)
        for questions in (seeing, blind)
    ]
    assert texts[0].replace("<|vision_start|><|video_pad|><|vision_end|>", "") == texts[1]


def test_the_longest_prompt_is_known_without_building_it(world, tmp_path):
    config = world.sft(tmp_path, data__system="Look.")
    policy = open_policy(config.model, "float32")
    questions = load_questions(config.data, policy, progress=SilentProgress())
    assert questions.longest_prompt == max(
        build_question_prompt(policy, question, "Look.").length for question in questions.kept
    )


def test_a_run_reports_every_step_in_its_journal(world, tmp_path):
    config = world.sft(tmp_path / "run", epochs=2)
    train_sft(config)
    lines = read_json_lines(config.output / "metrics.jsonl")
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (2, 0), (3, 1), (4, 1)]
