"""Whole evaluations on a small Video-MME: a real model, and a scripted oracle in place of the model's answers."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation import asking
from longrl_trainer.evaluation.benchmark import choose_questions, evaluate_benchmark
from longrl_trainer.evaluation.protocols import AskingProtocol, list_protocols, spoken_at, write_text
from longrl_trainer.evaluation.results import read_answers, read_result
from longrl_trainer.evaluation.scoring.comparison import compare_answers
from longrl_trainer.runs.export import export_model
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.benchmarks.questions import BenchmarkQuestion
from longvideo_reason_data.benchmarks.reading import read_benchmark
from longvideo_reason_data.errors import DataError
from longvideo_reason_data.media.subtitles.cues import Cue
from mrsp_engine.rollout.base import Rollout
from mrsp_engine.testing.fixtures import run_on_ranks

COLOURS = ("red", "green", "blue", "white")
SRT = "1\n00:00:00,000 --> 00:00:00,300\nIt is red.\n\n2\n00:00:01,100 --> 00:00:01,400\nIt goes on.\n"


def write_exam(folder: Path, films: list[Path]) -> Path:
    """Two questions about each film, one about a damaged and one about a missing video."""
    rows = []
    names = [*(film.stem for film in films), "damaged", "missing"]
    for place, name in enumerate(names):
        for number in range(2 if place < len(films) else 1):
            right = (place + number) % 4
            rows.append(
                {
                    "videoID": name,
                    "question_id": f"{name}-{number}",
                    "question": f"Which option is {COLOURS[right]}?",
                    "options": [f"{letter}. {colour}" for letter, colour in zip("ABCD", COLOURS, strict=True)],
                    "answer": "ABCD"[right],
                    "duration": "short" if place % 2 else "long",
                    "domain": "Knowledge",
                    "task_type": "Counting Problem",
                }
            )
    (folder / "data").mkdir(parents=True)
    (folder / "subtitle").mkdir()
    (folder / "videomme.json").write_text(json.dumps(rows))
    for film in films:
        (folder / "data" / film.name).write_bytes(film.read_bytes())
    (folder / "data" / "damaged.mp4").write_bytes(films[0].read_bytes()[:300])
    (folder / "subtitle" / f"{films[0].stem}.srt").write_text(SRT)
    return folder


@pytest.fixture
def exam(world, tmp_path):
    return write_exam(tmp_path / "exam", sorted((world.dataset / "videos").glob("held_out-*.mp4"))[:3])


def configure(world, exam, output, **changes):
    values = {
        "model": {"folder": str(world.model), "store": str(output.parent / "store")},
        "benchmark": "videomme",
        "path": str(exam),
        "table": "videomme.json",
        "output": str(output),
        "frames": [2, 4],
        "direct_tokens": 4,
        "thinking_tokens": 6,
        "sampler": {"engine": "transformers"},
    }
    return parse_config(values | changes, BenchmarkConfig, source="test")


class ScriptedOracle:
    """Replaces the model's answers: reads the prompt and says the letter of the option that the question names."""

    def __init__(self, policy, *, calls_before_failure: int | None = None) -> None:
        self.policy, self.calls_left = policy, calls_before_failure
        self.texts: list[str] = []

    def generate(self, prompts, sampling):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KeyboardInterrupt
        return [[self._answer(prompt)] for prompt in prompts]

    def _answer(self, prompt):
        text = self.policy.tokenizer.decode(prompt.token_ids)
        self.texts.append(text)
        colour = re.search(r"Which option is (\w+)\?", text)[1]
        letter = re.search(rf"([A-D])\. {colour}", text)[1]
        return Rollout(token_ids=(1,), logprobs=(0.0,), text=f"The answer is {letter}.", finished=True)

    def update_weights(self, policy) -> None:
        """It has none."""

    def sleep(self) -> None:
        """It has no memory."""

    def close(self) -> None:
        """It has nothing to free."""


def test_a_tiny_model_end_to_end(world, exam, tmp_path):
    config = configure(world, exam, tmp_path / "run", subtitles="both")
    result = evaluate_benchmark(config)
    assert [scores.protocol for scores in result.scores] == [
        "direct/2",
        "thinking/2",
        "direct/2/subtitles",
        "thinking/2/subtitles",
        "direct/4",
        "thinking/4",
        "direct/4/subtitles",
        "thinking/4/subtitles",
        "blind",
    ]
    assert {scores.count for scores in result.scores} == {8}
    assert {tuple(scores.not_asked.items()) for scores in result.scores[:-1]} == {
        (("missing_video", 1), ("unreadable_video", 1))
    }
    assert result.scores[-1].not_asked == {}  # blind, nothing has to be shown
    assert [(video.video, video.problem, video.num_questions) for video in result.record.unused_videos] == [
        ("data/damaged.mp4", "unreadable_video", 1),
        ("missing", "missing_video", 1),
    ]
    record = result.record
    assert (record.num_questions, record.num_videos, record.num_subtitled) == (8, 5, 1)
    assert record.decoder.startswith("pyav")
    assert [(frames.num_frames, frames.num_videos, frames.most) for frames in record.frames] == [(2, 3, 2), (4, 3, 4)]
    assert len({frames.digest for frames in record.frames}) == 2
    prompts = {item.protocol: item.digest for item in record.prompts}
    assert prompts["direct/2"] == prompts["direct/4"] == prompts["blind"] != prompts["thinking/2"]
    assert prompts["direct/4/subtitles"] != prompts["direct/4"]
    assert record.versions["transformers"]
    # each video was encoded once for each number of frames
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == 3 * 2
    assert read_result(config.output) == result
    answers = read_answers(config.output)
    assert len(answers) == 9 * 8
    assert {answer.num_tokens for answer in answers if not answer.finished and not answer.problem} == {4, 6}
    assert evaluate_benchmark(config) == result  # nothing is asked again


def test_a_scripted_oracle_gets_what_it_should(world, exam, tmp_path):
    policy = open_policy(configure(world, exam, tmp_path / "run").model, "float32")
    oracle = ScriptedOracle(policy)
    config = configure(world, exam, tmp_path / "run", rotate_options=True)
    result = evaluate_benchmark(config, policy, oracle)
    for scores in result.scores:
        right = 1.0 if scores.mode == "blind" else 6 / 8
        assert (scores.accuracy, scores.accuracy_under_all_rotations) == (right, right)
        assert scores.official_accuracy == right
        assert scores.num_responses == 32
    assert result.scores[0].groups["duration"]["short"].accuracy == 2 / 3
    assert len(oracle.texts) == 4 * (4 * 6 + 8)
    assert sum("<think>" in text for text in oracle.texts) == 4 * 2 * 6
    answers = read_answers(config.output)
    assert {comparison.verdict for comparison in compare_answers(answers, answers)} == {"no difference"}


def test_a_killed_run_continues_where_it_was(world, exam, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BATCH_QUESTIONS", 4)
    policy = open_policy(configure(world, exam, tmp_path / "run").model, "float32")
    whole = ScriptedOracle(policy)
    expected = evaluate_benchmark(configure(world, exam, tmp_path / "whole"), policy, whole)
    config = configure(world, exam, tmp_path / "run")
    killed, second = ScriptedOracle(policy, calls_before_failure=5), ScriptedOracle(policy)
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmark(config, policy, killed)
    journal = config.output / "responses.jsonl"
    assert len(journal.read_text().splitlines()) == 5
    with journal.open("a") as file:
        file.write('{"step": 1, "protocol": "dire')  # what a kill leaves behind
    result = evaluate_benchmark(config, policy, second)
    assert result.scores == expected.scores
    assert killed.texts + second.texts == whole.texts
    third = ScriptedOracle(policy)
    longer = evaluate_benchmark(configure(world, exam, tmp_path / "run", frames=[2, 4, 6]), policy, third)
    assert len(third.texts) == 2 * 6
    assert longer.scores[:4] == result.scores[:4]
    with pytest.raises(TrainerUsageError, match=r"contains another run: settings.direct_tokens was 4 and is now 5"):
        evaluate_benchmark(configure(world, exam, tmp_path / "run", direct_tokens=5), policy, third)


def test_what_is_wrong_is_found_before_a_model_is_loaded(world, exam, tmp_path):
    def refusal(**changes):
        config = configure(
            world, exam, tmp_path / "run", model={"folder": str(tmp_path / "never looked at")}, **changes
        )
        with pytest.raises(DataError) as caught:
            evaluate_benchmark(config)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert "no table of VRBench" in refusal(benchmark="vrbench", table=None)
    assert "no field 'video_path', found videoID" in refusal(benchmark="vrbench")
    assert "no such file" in refusal(table="gone.json")
    (srt,) = (exam / "subtitle").iterdir()
    srt.unlink()
    with pytest.raises(TrainerUsageError, match='subtitles="with": no subtitle file of Video-MME is in'):
        evaluate_benchmark(configure(world, exam, tmp_path / "run", subtitles="with"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainerUsageError, match="unknown benchmark 'videome'; did you mean videomme"):
        configure(world, exam, tmp_path / "run", benchmark="videome")
    with pytest.raises(TrainerUsageError, match="frames=8 8: expected each once"):
        configure(world, exam, tmp_path / "run", frames=[8, 8])


def test_too_long_a_prompt_is_wrong_and_counted(world, exam, tmp_path):
    config = configure(world, exam, tmp_path / "run", modes=["blind"], direct_tokens=10**6)
    policy = open_policy(config.model, "float32")
    scores = evaluate_benchmark(config, policy, ScriptedOracle(policy)).scores[0]
    assert (scores.accuracy, scores.not_asked, scores.count) == (0.0, {"prompt_too_long": 8}, 8)
    assert evaluate_benchmark(config).record.unused_videos == []


def test_a_journal_of_something_else_is_refused(world, exam, tmp_path):
    config = configure(world, exam, tmp_path / "run", modes=["blind"])
    evaluate_benchmark(config)
    (tmp_path / "run" / "responses.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    with pytest.raises(TrainerUsageError, match="written by something else"):
        evaluate_benchmark(config)


def test_answers_of_something_else_are_refused(world, exam, tmp_path):
    run = tmp_path / "run"
    evaluate_benchmark(configure(world, exam, run, modes=["blind"]))
    (run / "answers.jsonl").write_text("{\n")
    with pytest.raises(TrainerUsageError, match=r"answers\.jsonl: not readable as JSON lines"):
        read_answers(run)
    (run / "answers.jsonl").write_text("[]\n")
    with pytest.raises(TrainerUsageError, match=r"expected what longrl evaluate --benchmark writes"):
        read_answers(run)
    (run / "result.json").write_text('{"record": 1}')
    with pytest.raises(TrainerUsageError, match=r"result\.json: record: "):
        read_result(run)
    (run / "result.json").unlink()
    (run / "result.json").symlink_to(exam / "videomme.json")
    with pytest.raises(TrainerUsageError, match=r"result\.json: is a link"):
        read_result(run)


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_named_by_its_step_or_as_the_best(world, exam, tmp_path):
    options = {"learning_rate": 1e-2, "sampler__engine": "transformers", "checkpoint_every_steps": 1}
    asked = {"evaluation__every_steps": 1, "evaluation__num_questions": 2, "evaluation__max_response_tokens": 2}
    run = world.sft(tmp_path / "trained", **options, **asked, checkpoints_kept=9)
    train_sft(run)
    best = export_model(run.output, tmp_path / "best", step="best")
    (tmp_path / "runs").mkdir()

    def ask(name, model, **changes):
        place = {"folder": str(model), "store": str(tmp_path / "store")}
        config = configure(world, exam, tmp_path / "runs" / name, model=place, frames=[2], modes=["direct"], **changes)
        return evaluate_benchmark(config).record, read_answers(config.output)

    expected, answers = ask("exported", tmp_path / "best")
    record, again = ask("run", run.output, step="best")
    assert (record.model, record.model_step, record.model_digest) == (str(run.output), best, expected.model_digest)
    assert expected.model_step is None
    assert again == answers
    assert ask("run", run.output, step=best)[0].model_step == best  # the same run under another name
    other = next(step for step in (1, 2, 3, 4) if step != best)
    with pytest.raises(TrainerUsageError, match=r"contains another run: inputs\.model was "):
        ask("run", run.output, step=other)
    with pytest.raises(TrainerUsageError, match=r"trained: has no model of step 99; expected one of "):
        ask("none", run.output, step=99)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"exported", "run", "none"}  # no exported models


def evaluate_on_ranks(values: str) -> str:
    return json.dumps(asdict(evaluate_benchmark(BenchmarkConfig.model_validate_json(values))))


@pytest.mark.long
def test_two_ranks_get_what_one_gets(world, exam, tmp_path):
    alone = evaluate_benchmark(configure(world, exam, tmp_path / "alone", subtitles="with"))
    config = configure(world, exam, tmp_path / "together", subtitles="with")
    first, second = run_on_ranks(evaluate_on_ranks, 2, config.model_dump_json())
    assert first == second
    together = json.loads(first)
    assert together["scores"] == json.loads(json.dumps(asdict(alone)))["scores"]
    assert [frames["digest"] for frames in together["record"]["frames"]] == [
        frames.digest for frames in alone.record.frames
    ]
    answers = read_answers(config.output)
    assert [answer.response for answer in answers] == [answer.response for answer in read_answers(tmp_path / "alone")]


def test_the_text_of_each_protocol(world, exam, tmp_path):
    config = configure(world, exam, tmp_path / "run", subtitles="both", frames=[8])
    assert [protocol.name for protocol in list_protocols(config)] == [
        "direct/8",
        "thinking/8",
        "direct/8/subtitles",
        "thinking/8/subtitles",
        "blind",
    ]
    question = BenchmarkQuestion(question_id="q", video="v", question="Which?", options=("x", "y", "z"), answer="A")
    direct = AskingProtocol(mode="direct", num_frames=8)
    spoken = [Cue(start_seconds=0.0, end_seconds=1.0, text="Hello.")]
    assert write_text(question, direct, config, rotation=1, spoken=spoken) == "\n".join(
        [
            "This video's subtitles are listed below:",
            "Hello.",
            "Which?",
            "A. y",
            "B. z",
            "C. x",
            "Answer with the letter of the right option only.",
        ]
    )
    bare = config.model_copy(update={"direct_instruction": ""})
    assert write_text(question, direct, bare) == "Which?\nA. x\nB. y\nC. z"


def test_only_subtitles_at_the_shown_frames_are_told():
    cues = [Cue(start_seconds=start, end_seconds=start + 1, text=str(start)) for start in range(10, 16)]
    assert [cue.text for cue in spoken_at(cues, [0.0, 2.5, 2.7], start_seconds=10.0)] == ["10", "12"]


def test_a_limit_keeps_questions_together_that_are_scored_together(exam):
    benchmark = read_benchmark("videomme", exam, table="videomme.json")
    assert len(choose_questions(benchmark, 2)) == 2
    assert choose_questions(benchmark, 100) == benchmark.questions
    series = [replace(question, series=question.video) for question in benchmark.questions]
    chosen = choose_questions(replace(benchmark, questions=tuple(series)), 5)
    assert [question.question_id for question in chosen] == [
        *(question.question_id for question in series[:2]),
        *(question.question_id for question in series[4:6]),
    ]
