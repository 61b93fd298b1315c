"""What every objective teaches: held-out accuracy on the timeline world, from one CoT-SFT checkpoint per seed.

For every seed the world of the quickstart is rendered and imitated once. Then each objective by name trains from that
checkpoint, with all other settings alike, and `rl alone` trains GRPO from the untrained model. What is done stays in
the folder: the same command goes on where it stopped, and takes further seeds and objectives.

`open answers` trains GRPO from the same checkpoint on the same questions without options, rewarded by a judge, and is
compared with that checkpoint on held-out questions without options.

    python benchmarks/objectives.py --output objectives --seeds 0 1 2
    python benchmarks/objectives.py --output objectives --seeds 0 --objectives grpo dapo --steps 20
"""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from open_answers import JUDGE_MODEL, serve_judge, write_open_dataset
from rich.console import Console

from longrl.pipeline import open_pipeline
from longrl.progress import choose_progress
from longrl.quickstart.config import QUICKSTART_RECIPE, QuickstartConfig, load_quickstart
from longrl.quickstart.run import Quickstart
from longrl_trainer.config.objectives import ObjectiveParts
from longrl_trainer.config.sections import ObjectiveName
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.training.opening import open_policy

LAST_STAGE = "evaluate-sft"
ALONE = "rl alone"
OPEN, SFT_OPEN = "open answers", "sft, open answers"
UNSET = tuple(part.name for part in fields(ObjectiveParts))
"""Parts that the quickstart's recipe may set itself, and that belong to the objective here."""


def train_all(
    folder: Path, recipe: Path, seed: int, objectives: list[str], steps: int | None, progress: ProgressDisplay
) -> dict[str, float]:
    """Accuracy after imitation and after every objective, of one seed."""
    console = Console(stderr=True)
    config = load_quickstart(recipe, output=folder, seed=seed)
    with open_pipeline(folder, lambda line: console.print(line, highlight=False, soft_wrap=True)) as pipeline:
        quickstart = Quickstart(config, pipeline, progress)
        for stage in quickstart.create_stages():
            pipeline.run(stage)
            if stage.name == LAST_STAGE:
                break
        found = {name: _accuracy(folder / "evaluations" / name / _name(config)) for name in ("untrained", "sft")}
        try:
            for name in objectives:
                if name == OPEN:
                    found |= _train_on_open_answers(folder / "objectives" / name, config, steps, quickstart, progress)
                    continue
                found[name] = _train(folder / "objectives" / name, config, name, steps, quickstart, progress)
        finally:
            quickstart.sampler.close()
    return found


def _train(
    folder: Path,
    config: QuickstartConfig,
    name: str,
    steps: int | None,
    quickstart: Quickstart,
    progress: ProgressDisplay,
) -> float:
    """Train with one objective and evaluate."""
    training = _training(config, name, folder, steps)
    if name == ALONE:
        untrained = training.model.model_copy(update={"folder": config.sft.model.folder})
        # Without imitation hardly any answer is rewarded, and a run may end in a step without any.
        training = training.model_copy(update={"model": untrained, "min_reward_share": 0.0})
    result = train_grpo(training, engine=quickstart.sampler.open(), progress=progress)
    asked = config.evaluation_config(result.model_folder, folder / _name(config), num_frames=config.main_frames)
    return _evaluate(asked, quickstart, progress)


def _train_on_open_answers(
    folder: Path, config: QuickstartConfig, steps: int | None, quickstart: Quickstart, progress: ProgressDisplay
) -> dict[str, float]:
    """Train on questions without options, and evaluate on such questions before and after."""
    data = {"dataset": write_open_dataset(config.grpo.data.dataset, folder / "dataset"), "follow_links": True}
    with serve_judge() as address:
        judge = {"base_url": address, "model": JUDGE_MODEL}
        training = _training(config, "grpo", folder, steps)
        training = training.model_copy(
            update={
                "data": training.data.model_copy(update=data),
                "rewards": {"judge": {"weight": 0.9, **judge}, "format": 0.1},
            }
        )
        result = train_grpo(training, engine=quickstart.sampler.open(), progress=progress)
        found: dict[str, float] = {}
        for name, model in ((SFT_OPEN, training.model.folder), (OPEN, result.model_folder)):
            asked = config.evaluation_config(model, folder / name / _name(config), num_frames=config.main_frames)
            changes = {
                "data": asked.data.model_copy(update=data),
                "rewards": {"judge": {"weight": 1.0, **judge}},
            }
            found[name] = _evaluate(asked.model_copy(update=changes), quickstart, progress)
    return found


def _training(config: QuickstartConfig, objective: str, folder: Path, steps: int | None) -> GrpoConfig:
    changes: dict[str, Any] = {
        **dict.fromkeys(UNSET),
        "objective": "grpo" if objective == ALONE else objective,
        "output": str(folder / "run"),
        "steps": steps or config.grpo.steps,
    }
    return GrpoConfig.model_validate(config.grpo.model_dump(mode="json") | changes, strict=False)


def _name(config: QuickstartConfig) -> str:
    return f"{config.main_frames}-frames.json"


def _evaluate(asked: EvaluateConfig, quickstart: Quickstart, progress: ProgressDisplay) -> float:
    """Evaluate a model, or read what that gave before."""
    if not asked.output.exists():
        policy = open_policy(asked.model, asked.dtype)
        policy.freeze_vision()
        evaluate(asked, policy, engine=quickstart.sampler.open(), progress=progress)
    return _accuracy(asked.output)


def _accuracy(path: Path) -> float:
    return float(json.loads(path.read_text())["accuracy"])


def main() -> None:
    """Train, print the table and write it after every seed."""
    names = [*get_args(ObjectiveName), ALONE, OPEN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and of objectives.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=int, help="of every objective; by default those of the quickstart")
    parser.add_argument("--recipe", type=Path, default=QUICKSTART_RECIPE, help="of the world, the model and training")
    options = parser.parse_args()
    by_seed: dict[str, dict[str, float]] = {}
    progress = choose_progress()
    for seed in options.seeds:
        folder = options.output / f"seed-{seed}"
        by_seed[str(seed)] = train_all(folder, options.recipe, seed, options.objectives, options.steps, progress)
        text = json.dumps({"steps": options.steps, "accuracy": by_seed}, indent=2)
        (options.output / "objectives.json").write_text(text + "\n")
    for name in by_seed[str(options.seeds[0])]:
        accuracies = [by_seed[str(seed)][name] for seed in options.seeds]
        before = SFT_OPEN if name in (OPEN, SFT_OPEN) else "sft"
        gains = [by_seed[str(seed)][name] - by_seed[str(seed)][before] for seed in options.seeds]
        shown = "  ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        print(f"{name:<24} {shown}   mean {mean(accuracies):.3f}, least gain over sft {min(gains):+.3f}")


if __name__ == "__main__":
    main()
