"""An evaluation on a published benchmark: read, ask under every protocol, judge, write.

Everything that can be wrong with the request is found before a model is loaded. The run owns its folder, continues
after an interruption, and, if nothing is left to ask, only judges the responses again.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from longrl_files.folders import follow_links
from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.effects import named_settings
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.asking import BenchmarkAsker, QuestionBatch, divide_questions, read_batches
from longrl_trainer.evaluation.judging import judge_all
from longrl_trainer.evaluation.open_answers import OpenAnswerJudge
from longrl_trainer.evaluation.protocols import AskingProtocol, count_rotations, list_protocols
from longrl_trainer.evaluation.results import RESPONSES_NAME, BenchmarkResult
from longrl_trainer.questions.length import LengthLimit
from longrl_trainer.runs.digests import digest_of
from longrl_trainer.runs.export import NamedModel, open_named_model
from longrl_trainer.runs.journal import JsonLines
from longrl_trainer.runs.progress import ProgressDisplay, SilentProgress
from longrl_trainer.runs.settings import find_changes, read_settings, write_settings
from longrl_trainer.training.opening import check_sampler, open_engine, open_policy
from longrl_trainer.training.ranks import join_ranks
from longvideo_reason_data.benchmarks.questions import Benchmark, BenchmarkQuestion
from longvideo_reason_data.benchmarks.reading import read_benchmark
from longvideo_reason_data.ownership import own_folder
from mrsp_engine.families.base import Policy
from mrsp_engine.rollout.base import RolloutEngine


def evaluate_benchmark(
    config: BenchmarkConfig,
    policy: Policy | None = None,
    engine: RolloutEngine | None = None,
    progress: ProgressDisplay | None = None,
) -> BenchmarkResult:
    """Ask every question of a benchmark under every protocol, and write responses, scores and the record.

    Args:
        config: The resolved settings.
        policy: The model of `config.model`, if it is already loaded.
        engine: A sampler to use instead of opening one; it gets the policy's weights and stays open.
        progress: Where to show progress.

    Raises:
        DataError: The benchmark can't be read; nothing was loaded.
        TrainerUsageError: There are no subtitles although they are asked for, or the output folder has another run.
        TrainerError: The judge of open answers can't judge; nothing was loaded.
        StoppedError: It has been down for too long; every response is kept, and the same call goes on.
    """
    if config.follow_links:
        follow_links(config.path)
    benchmark = read_benchmark(config.benchmark, config.path, table=config.table)
    questions = choose_questions(benchmark, config.limit)
    if config.subtitles != "without" and not any(question.subtitle_file for question in questions):
        raise TrainerUsageError(
            f'subtitles="{config.subtitles}": no subtitle file of {benchmark.layout.title} is in {config.path}; put '
            'them there, or set "without"'
        )
    open_answers = OpenAnswerJudge(config.judge, questions)
    ranks = join_ranks(config.model)
    check_sampler(config.sampler, ranks)
    progress = progress if progress and ranks.is_first else SilentProgress()
    with ExitStack() as owned:
        ranks.ask_first(lambda: owned.enter_context(own_folder(config.output)))
        model = owned.enter_context(open_named_model(config.model.folder, config.output, step=config.step, ranks=ranks))
        model_digest = ranks.ask_first(lambda: _begin(config, benchmark, model))
        ranks.ask_first(lambda: open_answers.open(config.output, owned))
        journal = JsonLines(config.output / RESPONSES_NAME, is_writer=ranks.is_first)
        ranks.ask_first(lambda: journal.keep_until(len(questions)))
        batches, protocols = divide_questions(questions), list_protocols(config)
        done = ranks.ask_first(lambda: set(read_batches(journal)))
        if any((protocol.name, batch.number) not in done for protocol in protocols for batch in batches):
            policy = policy or open_policy(config.model.model_copy(update={"folder": model.folder}), config.dtype)
            with open_engine(
                config.sampler,
                policy,
                model.folder,
                engine=engine,
                max_model_len=LengthLimit.of(policy, config.sampler).tokens,
                dtype=config.dtype,
                ranks=ranks,
                allow_pickle_weights=config.model.allow_pickle_weights,
            ) as sampler:
                asker = BenchmarkAsker(config, benchmark, policy, sampler, journal, ranks)
                _ask_all(config, asker, batches, protocols, done, progress)
        return ranks.ask_first(
            lambda: judge_all(
                config,
                benchmark,
                questions,
                read_batches(journal),
                open_answers,
                model_digest=model_digest,
                model_step=model.step,
            )
        )


def choose_questions(benchmark: Benchmark, limit: int | None) -> tuple[BenchmarkQuestion, ...]:
    """At most `limit` questions, spread evenly; those that are scored together stay together."""
    units: dict[str, list[BenchmarkQuestion]] = {}
    for question in benchmark.questions:
        units.setdefault(f"series {question.series}" if question.series else question.question_id, []).append(question)
    whole = list(units.values())
    if limit is None or limit >= len(benchmark.questions):
        return benchmark.questions
    most = max(1, limit // max(map(len, whole)))
    return tuple(question for place in range(most) for question in whole[place * len(whole) // most])


def _begin(config: BenchmarkConfig, benchmark: Benchmark, model: NamedModel) -> str:
    """Save the settings, or check that the folder's run has the same; returns the model's digest."""
    outside = (config.output, config.model.store, config.path)
    inputs = {
        "model": digest_of(model.folder, "`model.folder`", outside=outside),
        "questions": benchmark.digest,
    }
    places = {"model": str(config.model.folder), "store": str(config.model.store), "benchmark": str(config.path)}
    described: dict[str, Any] = {
        "stage": "benchmark",
        "settings": named_settings(config),
        "inputs": inputs,
        "places": places,
        "changes": [],
    }
    saved = read_settings(config.output)
    if saved is not None:
        find_changes(config.output, saved, described, config)
    write_settings(config.output, described)
    return inputs["model"]


def _ask_all(
    config: BenchmarkConfig,
    asker: BenchmarkAsker,
    batches: Sequence[QuestionBatch],
    protocols: Sequence[AskingProtocol],
    done: set[tuple[str, int]],
    progress: ProgressDisplay,
) -> None:
    counts = [sum(count_rotations(question, config) for question in batch.questions) for batch in batches]
    for num_frames in dict.fromkeys(protocol.num_frames for protocol in protocols):
        alike = [protocol for protocol in protocols if protocol.num_frames == num_frames]
        total = len(alike) * sum(counts)
        num_done = sum(counts[number] for name, number in done if any(name == item.name for item in alike))
        description = f"Ask ({num_frames} frames)" if num_frames else "Ask (blind)"
        with progress.task(description, total=total, done=num_done) as bar:
            for batch in batches:
                left = [protocol for protocol in alike if (protocol.name, batch.number) not in done]
                if left:
                    asker.ask(batch, left, num_frames)
                    bar.advance(len(left) * counts[batch.number])
