"""`longrl evaluate`, on a split of a dataset or on a published benchmark, and `longrl compare`.

A benchmark is evaluated when `--benchmark` names one, or a recipe does. Imports the trainer only when a command runs.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from longrl.commands.recipes import describe_questions, has_recipe, resolve_config
from longrl.errors import AppUsageError
from longrl_files.messages import visible
from longrl_files.regular_files import read_bounded

if TYPE_CHECKING:
    from longrl_trainer.evaluation.results import BenchmarkResult

OPTION = "--benchmark"
MOST_SHOWN = 5

Folder = Annotated[Path, tyro.conf.Positional]


def evaluate(arguments: Sequence[str]) -> None:
    """Measure accuracy on one split, or on a benchmark."""
    if names_benchmark(arguments):
        evaluate_on_benchmark(arguments)
    else:
        evaluate_on_split(arguments)


def names_benchmark(arguments: Sequence[str]) -> bool:
    """Whether the options or the recipe name a benchmark; a recipe that can't be read is reported by its reader."""
    if any(argument == OPTION or argument.startswith(f"{OPTION}=") for argument in arguments):
        return True
    if not has_recipe(arguments) or not Path(arguments[0]).is_file():
        return False
    try:
        return "benchmark" in tomllib.loads(read_bounded(Path(arguments[0]), error=AppUsageError).decode())
    except (ValueError, RecursionError):
        return False


def evaluate_on_split(arguments: Sequence[str]) -> None:
    """Measure accuracy on one split."""
    from longrl_trainer.config.stages import EvaluateConfig

    config = resolve_config(
        "evaluate",
        arguments,
        EvaluateConfig,
        example=(
            "longrl evaluate --model.folder runs/grpo/model --data.dataset dataset --data.split held_out "
            "--data.num-frames 64 --output accuracy.json\n\n"
            "Example: longrl evaluate --benchmark videomme --path Video-MME --help (with options of its own)"
        ),
    )
    from longrl.progress import choose_progress
    from longrl_trainer.evaluation.evaluate import evaluate as run_evaluation

    result = run_evaluation(config, progress=choose_progress())
    print(
        f"accuracy {result.accuracy:.1%} ± {result.accuracy_standard_error:.1%} "
        f"(constant letter {result.constant:.1%}, chance {result.chance:.1%}), "
        f"unparsed {result.unparsed_rate:.1%}; {describe_questions(result.questions)}"
        + (f", refused {result.prompts_refused}" if result.prompts_refused else "")
    )
    for skill, accuracy in result.accuracy_by_skill.items():
        print(f"  {skill:<10} {accuracy:.1%}")
    print(config.output)


def evaluate_on_benchmark(arguments: Sequence[str]) -> None:
    """Measure scores on a published benchmark."""
    from longrl_trainer.config.benchmarks import BenchmarkConfig

    config = resolve_config(
        "evaluate",
        arguments,
        BenchmarkConfig,
        example=(
            "longrl evaluate --benchmark videomme --path Video-MME --model.folder runs/grpo/model --frames 8 32 64 "
            "--output runs/videomme"
        ),
    )
    from longrl.progress import choose_progress
    from longrl_trainer.evaluation.benchmark import evaluate_benchmark

    result = evaluate_benchmark(config, progress=choose_progress())
    print_scores(result)
    if os.environ.get("RANK", "0") == "0":
        from longrl.report.accuracy import write_accuracy_page

        print(write_accuracy_page(config.output, result))


def print_scores(result: "BenchmarkResult") -> None:
    """Print a table of all protocols, and what couldn't be asked."""
    record, baselines = result.record, result.baselines
    print(
        f"{record.title}: {record.num_questions} of {record.num_published} questions about {record.num_videos} videos; "
        f"chance {baselines.chance:.1%}, always {baselines.constant_letter or '–'} {baselines.constant:.1%}"
    )
    print(f"  {'protocol':<24} {'accuracy':>14} {'official':>9} {'published':>10} {'unparsed':>9} {'truncated':>10}")
    for scores in result.scores:
        official = "–" if scores.official_accuracy is None else f"{scores.official_accuracy:.1%}"
        published = "–" if scores.published is None else f"{scores.published.score:.1%}"
        print(
            f"  {scores.protocol:<24} {f'{scores.accuracy:.1%} ± {scores.standard_error:.1%}':>14} {official:>9} "
            f"{published:>10} {scores.unparsed_rate:>9.1%} {scores.truncated_rate:>10.1%}"
        )
        if scores.not_asked:
            reasons = ", ".join(f"{count} {reason}" for reason, count in scores.not_asked.items())
            print(f"    not asked and wrong: {reasons}")
    if record.open_answers_by:
        print(f"  open answers compared by {visible(record.open_answers_by, 60)}")
    if record.undecided:
        shown = ", ".join(visible(name, 40) for name in record.undecided[:MOST_SHOWN])
        more = f" and {len(record.undecided) - MOST_SHOWN} more in result.json" if record.undecided[MOST_SHOWN:] else ""
        print(f"  no judgement on answers to {shown}{more}; they aren't counted as right")
        print("    run it again to repeat requests that failed")
    for video in record.unused_videos[:MOST_SHOWN]:
        print(f"  {visible(video.video, 60)}: {visible(video.detail, 120)}")
    if len(record.unused_videos) > MOST_SHOWN:
        print(f"  and {len(record.unused_videos) - MOST_SHOWN} more videos in result.json")


def compare(first: Folder, second: Folder, output: Path | None = None) -> None:
    """Compare two evaluations on a benchmark, question by question.

    Under each protocol that both have: the difference of the accuracies with the 95 % interval of a paired bootstrap
    over videos, and McNemar's test on the questions that one of them has right and the other wrong.

    Example: longrl compare runs/sft-videomme runs/grpo-videomme

    Args:
        first: Output folder of longrl evaluate --benchmark.
        second: Another one, on the same benchmark.
        output: Write the comparison to this JSON file too.
    """
    from dataclasses import asdict

    from longrl_trainer.durable import write_json
    from longrl_trainer.evaluation.results import read_answers, read_result
    from longrl_trainer.evaluation.scoring.comparison import compare_answers

    records = [read_result(folder).record for folder in (first, second)]
    if records[0].questions_digest != records[1].questions_digest:
        names = " and ".join(visible(record.title, 40) for record in records)
        raise AppUsageError(
            f"{first} and {second}: questions of {names} that differ; expected runs on the same questions"
        )
    ways = [visible(record.open_answers_by, 40) for record in records]
    if ways[0] != ways[1]:
        print(f"  open answers of the first are compared by {ways[0]}, those of the second by {ways[1]}")
    found = compare_answers(read_answers(first), read_answers(second))
    print(f"  {'protocol':<24} {'first':>7} {'second':>7} {'difference':>11} {'95 % interval':>18} {'p':>7}")
    for item in found:
        interval = f"{item.low:+.1%} to {item.high:+.1%}"
        print(
            f"  {item.protocol:<24} {item.first:>7.1%} {item.second:>7.1%} {item.difference:>+11.1%} {interval:>18} "
            f"{item.p_value:>7.3f}  {item.verdict} ({item.only_second} won, {item.only_first} lost)"
        )
        if item.num_unmatched:
            print(f"    {item.num_unmatched} questions that only one of them has are left out")
    if output is not None:
        write_json(output, {"first": str(first), "second": str(second), "protocols": [asdict(item) for item in found]})
        print(output)
