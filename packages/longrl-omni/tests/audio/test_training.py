"""The trainer's own loops on both families: two GRPO steps whose sampler agrees, and SFT that learns from audio."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longrl_omni.audio.medium import AudioClip
from longrl_omni.audio.tiny_tasks import make_tone, write_sound
from longrl_omni.text import SourceText
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.config.sections import DataSection
from longrl_trainer.config.stages import GrpoConfig, SftConfig
from longrl_trainer.grpo import train_grpo
from longrl_trainer.objectives.base import build_objective
from longrl_trainer.questions.question import Question, build_question_prompt
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.rl.groups import judge_groups
from longrl_trainer.rl.sampling import draw_responses
from longrl_trainer.rl.update import PolicyUpdate
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.sft import train_sft
from longrl_trainer.training.optimizer import Optimizer
from longrl_trainer.training.scoring import RowScoring
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.records.answers import format_response
from longvideo_reason_data.records.record import QuestionRecord, read_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.step_media import StepMedia
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.rollout.transformers import TransformersRolloutEngine

Load = Callable[..., Any]
OPENERS = {"qwen2": SourceText.open, "qwen2_audio": AudioClip.open}


@pytest.fixture(params=["sums", "tones"])
def task(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A model folder and a dataset folder that belong together."""
    model = "text_folder" if request.param == "sums" else "audio_folder"
    return request.getfixturevalue(model), request.getfixturevalue(request.param)


def settings(task: tuple[Path, Path], store: EmbeddingStore, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"folder": str(task[0]), "store": str(store.folder)},
        "data": {"dataset": str(task[1]), "split": "train_rl", "num_frames": 1},
        "output": str(output),
        "learning_rate": 1e-3,
    } | changes


def grpo_settings(task: tuple[Path, Path], store: EmbeddingStore, output: Path) -> GrpoConfig:
    values = settings(
        task, store, output, steps=2, prompts_per_step=2, group_size=4, max_response_tokens=10, max_logprob_gap=1e-4
    )
    return parse_config(values | {"sampler": {"engine": "transformers"}}, GrpoConfig, source="test")


def questions_of(policy: Any, data: DataSection) -> list[Question]:
    """Every question with its medium, opened through the trainer's entry point."""
    questions: list[Question] = []
    for record in read_records(data.dataset / "records.parquet"):
        medium = OPENERS[policy.name](data.dataset / record.media[0].path, policy)
        assert medium.content_digest == record.media[0].digest
        questions.append(Question(record=record, media=medium.encode(data)))
    return questions


@pytest.mark.slow
def test_two_grpo_steps_with_the_trainers_own_parts(
    task: tuple[Path, Path], load: Load, store: EmbeddingStore, tmp_path: Path
) -> None:
    config = grpo_settings(task, store, tmp_path / "run")
    policy = load(task[0])
    questions = questions_of(policy, config.data)
    assert store.counters.encodes == sum(len(question.media) for question in questions)
    engine = TransformersRolloutEngine(policy)
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0)
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    rewards = load_rewards(config.rewards)
    objective = build_objective(config)
    update = PolicyUpdate(
        policy=policy,
        optimizer=optimizer,
        objective=objective,
        scoring=RowScoring.of(config, policy, temperature=config.temperature),
        max_logprob_gap=config.logprob_gap_limit,
    )
    for step in range(2):
        asked = questions[2 * step : 2 * step + 2]
        prompts = [build_question_prompt(policy, question, None) for question in asked]
        drawn = draw_responses(engine, prompts, config, step=step)
        groups = judge_groups(list(zip(asked, prompts, drawn, strict=True)), rewards=rewards, objective=objective)
        # An untrained model is never right; the reward must vary, or no group would be computed.
        groups = [_with_spread(group) for group in groups]
        statistics = update.run(groups, StepMedia(policy, []), config.learning_rate)
        assert statistics.gap_mean_abs < 1e-4
        assert statistics.gradient_norm > 0
        engine.update_weights(policy)
    moved = {name for name, parameter in policy.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}


def _with_spread(group: Any) -> Any:
    scores = [dataclasses.replace(score, total=float(index % 2)) for index, score in enumerate(group.scores)]
    advantages = tuple(1.0 if index % 2 else -1.0 for index in range(len(scores)))
    return dataclasses.replace(group, scores=tuple(scores), advantages=advantages)


@pytest.mark.slow
def test_the_model_learns_to_hear(load: Load, audio_folder: Path, tones: Path, store: EmbeddingStore) -> None:
    """After some SFT the reasoning names the tone of the recording rather than another."""
    policy = load(audio_folder)
    data = DataSection(dataset=tones, split="train_rl", num_frames=1)
    questions = questions_of(policy, data)
    optimizer = Optimizer(policy.model, weight_decay=0.0, max_gradient_norm=1.0)
    for _ in range(60):
        for question in questions:
            record = question.record
            said = policy.tokenizer.encode(format_response(record.reasoning, record.answer), add_special_tokens=False)
            prompt = build_question_prompt(policy, question, None)
            scores = score_branches(policy, prompt, [Branch(token_ids=(*said, policy.end_token_ids[0]))])
            (-torch.cat(scores.logprobs).mean() / len(questions)).backward()
        optimizer.step(5e-3)

    def reasoning_logprob(question: Question, record: QuestionRecord) -> float:
        """Log-probability of the reasoning, which names the tone, for another record's tone."""
        prompt = build_question_prompt(policy, question, None)
        said = policy.tokenizer.encode(f"<think>{record.reasoning}", add_special_tokens=False)
        with torch.no_grad():
            return score_branches(policy, prompt, [Branch(token_ids=tuple(said))]).logprobs[0].sum().item()

    records = {question.record.reasoning: question.record for question in questions}
    for question in questions:
        guesses = {name: reasoning_logprob(question, record) for name, record in records.items()}
        assert max(guesses, key=lambda name: guesses[name]) == question.record.reasoning


@pytest.mark.slow
def test_the_whole_loops_run_unchanged(
    task: tuple[Path, Path], load: Load, store: EmbeddingStore, tmp_path: Path
) -> None:
    values = settings(task, store, tmp_path / "sft", epochs=12, rows_per_step=4, questions_per_row=2)
    sft = parse_config(values | {"learning_rate": 5e-3}, SftConfig, source="test")
    result = train_sft(sft)
    losses = [line["loss"] for line in read_json_lines(sft.output / "metrics.jsonl")]
    assert result.questions == {"input": 8, "kept": 8, "dropped": {}}
    assert losses[-1] < 0.7 * losses[0]
    trained = (result.model_folder, task[1])
    grpo = grpo_settings(trained, store, tmp_path / "grpo")
    train_grpo(grpo)
    lines = read_json_lines(grpo.output / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["logprob_gap"]["mean_abs"] < 1e-4 for line in lines)
    encodes = 8 if task[1].name.startswith("tones") else 0
    assert store.counters.encodes == encodes  # SFT and GRPO together


def test_files_that_cannot_be_heard_are_refused(
    load: Load, text_folder: Path, audio_folder: Path, tones: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineUsageError, match="accepts no audio"):
        AudioClip.open(tones / "clips" / "0.flac", load(text_folder))
    write_sound(tmp_path / "click.wav", [make_tone(400, 0.01)])
    with pytest.raises(DataError, match="too short"):
        AudioClip.open(tmp_path / "click.wav", load(audio_folder))
    with pytest.raises(DataError, match="not an audio file"):
        AudioClip.open(tones / "records.parquet", load(audio_folder))
