"""Open answers of a benchmark, by their words or by a judge behind a real server; only the model is scripted."""

import json

import pytest
from judge_server import find_same, serve_judge

from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.recipes import parse_config
from longrl_trainer.errors import StoppedError, TrainerError, TrainerUsageError
from longrl_trainer.evaluation.benchmark import evaluate_benchmark
from longrl_trainer.evaluation.results import read_answers
from longrl_trainer.training.opening import open_policy
from mrsp_engine.rollout.base import Rollout

ASKED = {
    "What does she carry?": ("a red umbrella", "Red umbrella."),
    "Where is he?": ("the kitchen", "in the cookhouse"),
    "What barks?": ("a dog", "a cat"),
    "How many boats?": ("3", "3."),
    "What is hidden?": ("a key", ":"),
    "What is cut?": ("a rope", "<answer>a rope</answer><answer>a tree</answer>"),
}
"""The right answer to each question, and what the model says."""


class ScriptedAnswerer:
    """Replaces the model's answers by those above."""

    def __init__(self, policy) -> None:
        self.policy, self.num_asked = policy, 0

    def generate(self, prompts, sampling):
        return [[self._answer(prompt)] for prompt in prompts]

    def _answer(self, prompt):
        self.num_asked += 1
        text = self.policy.tokenizer.decode(prompt.token_ids)
        said = next(said for question, (_, said) in ASKED.items() if question in text)
        return Rollout(token_ids=(1,), logprobs=(0.0,), text=said, finished=True)

    def update_weights(self, policy) -> None:
        """It has none."""

    def sleep(self) -> None:
        """It has no memory."""

    def close(self) -> None:
        """It has nothing to free."""


@pytest.fixture
def server():
    with serve_judge() as judge:
        judge.reply = lambda right, given: (
            json.dumps({"same": given == "in the cookhouse"}) if right == "the kitchen" else find_same(right, given)
        )
        yield judge


NO_HABITS = {"num_attempts": 6, "first_wait_seconds": 1.0, "patience_seconds": 900.0}
"""The defaults of what the tests set for every judge."""


@pytest.fixture
def configure(world, tmp_path):
    exam = tmp_path / "exam"
    exam.mkdir()
    (exam / "film.mp4").write_bytes((world.dataset / "videos" / "held_out-red.mp4").read_bytes())
    rows = [
        {"question_id": f"q{place}", "video": "film.mp4", "question": question, "answer": right}
        for place, (question, (right, _)) in enumerate(ASKED.items())
    ]
    (exam / "exam.json").write_text(json.dumps(rows))

    def make(server=None, **changes):
        values = {
            "model": {"folder": str(world.model), "store": str(tmp_path / "store")},
            "benchmark": "questions",
            "path": str(exam),
            "output": str(tmp_path / "run"),
            "modes": ["blind"],
            "sampler": {"engine": "transformers"},
        }
        if server is not None:
            asked = {"model": "judge", "num_attempts": 1, "first_wait_seconds": 0.01, "patience_seconds": 0.3}
            values["judge"] = {"base_url": server.base_url, **asked, **changes}
        return parse_config(values, BenchmarkConfig, source="test")

    return make


def right_of(config):
    return {answer.question_id for answer in read_answers(config.output) if answer.correct}


def test_a_judge_decides_what_words_do_not_and_is_asked_once(server, configure):
    by_words = configure()
    policy = open_policy(by_words.model, "float32")
    answerer = ScriptedAnswerer(policy)
    result = evaluate_benchmark(by_words, policy, answerer)
    assert (result.record.open_answers_by, result.record.undecided) == ("words", [])
    assert right_of(by_words) == {"q0", "q3"}

    judged = configure(server)
    result = evaluate_benchmark(judged, policy, answerer)
    assert result.record.open_answers_by == "judge"
    assert right_of(judged) == {"q1", "q3"}  # the server compares letters: "Red umbrella." isn't "a red umbrella"
    assert result.scores[0].accuracy == 2 / 6
    assert answerer.num_asked == 6  # the model isn't asked again
    given = [prompt.split("\nAnswer: <<<")[1].split(">>>")[0] for prompt in server.prompts if "umbrella" not in prompt]
    assert sorted(given) == ["a cat", "in the cookhouse"]  # no number, no punctuation, no two answers
    num_asked = len(server.prompts)
    assert evaluate_benchmark(judged, policy, answerer) == result
    assert len(server.prompts) == num_asked
    assert evaluate_benchmark(by_words, policy, answerer).record.open_answers_by == "words"


def test_an_answer_without_a_judgement_is_listed_and_asked_about_again_if_the_request_failed(server, configure):
    config, decide = configure(server), server.reply
    policy = open_policy(config.model, "float32")
    failing = {"in the cookhouse": "perhaps", "a cat": 500}
    server.reply = lambda right, given: failing.get(given) or decide(right, given)
    result = evaluate_benchmark(config, policy, ScriptedAnswerer(policy))
    assert result.record.undecided == ["q1", "q2"]
    assert right_of(config) == {"q3"}
    assert result.scores[0].count == 6
    assert [answer.question_id for answer in read_answers(config.output) if answer.is_undecided] == ["q1", "q2"]

    server.reply, num_asked = decide, len(server.prompts)
    again = evaluate_benchmark(config, policy, ScriptedAnswerer(policy))
    assert ["a cat" in prompt for prompt in server.prompts[num_asked:]] == [True]  # "perhaps" is in the journal
    assert again.record.undecided == ["q1"]


def test_a_judge_that_is_down_ends_it_and_nothing_is_scored(server, configure):
    config, decide = configure(server), server.reply
    policy = open_policy(config.model, "float32")
    answerer = ScriptedAnswerer(policy)
    said = {each for _, each in ASKED.values()} - {":"}
    server.reply = lambda right, given: 500 if given in said else decide(right, given)  # it passes its trial
    with pytest.raises(StoppedError, match=r"^judge: no judgement for 0\.3 s .*; start again to go on$"):
        evaluate_benchmark(config, policy, answerer)
    assert not (config.output / "result.json").exists()
    server.reply, num_asked = decide, len(server.prompts)
    evaluate_benchmark(config, policy, answerer)
    assert right_of(config) == {"q1", "q3"}
    assert answerer.num_asked == 6
    assert not any("green bucket" in prompt for prompt in server.prompts[num_asked:])  # it isn't tried again


def test_what_is_wrong_with_a_judge_is_one_line_before_a_model_is_loaded(server, configure, monkeypatch):
    monkeypatch.setattr("longrl_trainer.evaluation.benchmark.open_policy", lambda *_: pytest.fail("loaded"))
    with pytest.raises(TrainerUsageError, match=r"test: judge\.model is missing; set it too"):
        configure(server, model=None)
    with pytest.raises(TrainerUsageError, match=r"test: judge\.max_cost=1\.0 without a judge; set judge\.base_url and"):
        configure(server, model=None, base_url=None, max_cost=1.0, **NO_HABITS)
    with pytest.raises(TrainerUsageError, match=r"^judge: judge\.base_url 'nowhere': not an address"):
        evaluate_benchmark(configure(server, base_url="nowhere"))
    with pytest.raises(TrainerUsageError, match=r"^judge: judge\.max_cost 1: the prices aren't known"):
        evaluate_benchmark(configure(server, max_cost=1.0))
    with pytest.raises(TrainerError, match=r"^judge: http://127\.0\.0\.1:9/v1: no server answers there"):
        evaluate_benchmark(configure(server, base_url="http://127.0.0.1:9/v1"))
    server.reply = lambda right, given: '{"same": true}'
    with pytest.raises(TrainerError, match=r"^judge: judge judge: finds ':' right, .*; choose another judge\.model"):
        evaluate_benchmark(configure(server))
