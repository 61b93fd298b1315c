"""The world of pictures in one command: captions, a model that learns to draw them, rewards that improve it, a report.

Nothing is downloaded. The stages are those of any pipeline (`longrl.pipeline`): a finished one is reused, and a killed
one continues.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from longrl.errors import AppUsageError
from longrl.pictures.config import ACCURACY, PicturesConfig
from longrl.pictures.report import REPORT_NAME, SUMMARY_NAME, write_report
from longrl.pipeline import Pipeline, Stage, open_pipeline
from longrl_omni.generation.grpo import AFTER, BEFORE, train_generation
from longrl_omni.generation.pictures.model import create_pictures_policy
from longrl_omni.generation.pictures.pretraining import pretrain
from longrl_omni.generation.pictures.prompt_files import choose_captions, write_captions
from longrl_trainer.config.effects import named_settings
from longrl_trainer.config.recipes import save_config
from longrl_trainer.runs.progress import ProgressDisplay
from longrl_trainer.seeds import derive_seed


def run_pictures(config: PicturesConfig, progress: ProgressDisplay, console: Console) -> dict[str, Any]:
    """Run what is not done yet; returns the contents of `report.json`."""
    try:
        choose_captions(config.captions, seed=config.seed)
    except ValueError as error:
        raise AppUsageError(f"captions.train_captions: {error}") from None
    with open_pipeline(config.output, lambda line: console.print(line, highlight=False, soft_wrap=True)) as pipeline:
        stages = PicturesWorld(config, pipeline, progress).create_stages()
        pipeline.require_own({stage.name for stage in stages})
        save_config(config, config.output)
        return [pipeline.run(stage) for stage in stages][-1].result


class PicturesWorld:
    """Shared by the stages: the configuration and their pipeline."""

    def __init__(self, config: PicturesConfig, pipeline: Pipeline, progress: ProgressDisplay) -> None:
        self.config = config
        self.pipeline = pipeline
        self.progress = progress

    def create_stages(self) -> list[Stage]:
        """All stages in order."""
        config = self.config
        return [
            Stage(
                name="captions",
                settings={"seed": config.seed, "captions": config.captions.model_dump(mode="json")},
                outputs=("captions",),
                run=self.write_captions,
            ),
            Stage(
                name="pretraining",
                settings={"seed": config.seed, "pretraining": config.pretraining.model_dump(mode="json")},
                after=("captions",),
                outputs=("model",),
                run=self.pretrain,
            ),
            Stage(
                name="rl",
                settings={"rl": named_settings(config.rl)},
                after=("captions", "pretraining"),
                outputs=("rl",),
                run=self.train,
            ),
            Stage(
                name="report",
                settings={},
                after=("captions", "pretraining", "rl"),
                outputs=(REPORT_NAME, SUMMARY_NAME),
                run=self.report,
            ),
        ]

    def write_captions(self) -> Mapping[str, Any]:
        """Choose the captions and write them as prompts."""
        captions, held_out = choose_captions(self.config.captions, seed=self.config.seed)
        write_captions(self.config.output / "captions", captions, held_out)
        return {"train": len(captions), "held_out": len(held_out)}

    def pretrain(self) -> Mapping[str, Any]:
        """Teach a new model to draw captions, except those that are held out."""
        config = self.config
        _, held_out = choose_captions(config.captions, seed=config.seed)
        policy = create_pictures_policy(seed=derive_seed(config.seed, "model"))
        losses = pretrain(
            policy,
            config.pretraining,
            seed=config.seed,
            most_things=config.captions.most_things,
            held_out=frozenset(held_out),
            progress=self.progress,
        )
        policy.save(config.rl.model.folder)
        parameters = sum(weight.numel() for weight in policy.transformer.parameters())
        return {"losses": losses, "parameters": parameters}

    def train(self) -> Mapping[str, Any]:
        """Improve the model by its rewards."""
        result = train_generation(self.config.rl, progress=self.progress)
        return {
            "num_steps": result.num_steps,
            "checker_accuracy": {BEFORE: result.before[ACCURACY], AFTER: result.after[ACCURACY]},
            "held_out_reward": {
                BEFORE: result.before[self.config.rl.held_out_reward],
                AFTER: result.after[self.config.rl.held_out_reward],
            },
            "ratio_error": result.ratio_error,
            "prompts_encoded": result.prompts_encoded,
        }

    def report(self) -> Mapping[str, Any]:
        """Write the report."""
        return write_report(self.config, self.pipeline)


def print_pictures_summary(config: PicturesConfig, summary: Mapping[str, Any], console: Console) -> None:
    """Print the result and where everything is."""
    accuracy, held_out = summary["checker_accuracy"], summary["held_out_reward"]
    console.print()
    console.print(f"accuracy    {accuracy[BEFORE]:6.1%} → {accuracy[AFTER]:6.1%}", highlight=False)
    console.print(f"held out    {held_out[BEFORE]:6.3f} → {held_out[AFTER]:6.3f}", highlight=False)
    console.print(f"report      {config.output / REPORT_NAME}", soft_wrap=True, highlight=False)
    console.print(f"model       {config.rl.output / 'model'}", soft_wrap=True, highlight=False)
