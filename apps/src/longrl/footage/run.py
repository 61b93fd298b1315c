"""From a folder of one's own videos to a report: dataset, CoT-SFT, GRPO, evaluations, each a stage that is resumed.

The stages are those of any pipeline (`longrl.pipeline`). The dataset is built as by `longvideo-data build`; then the
recipes are written (`longrl.footage.recipes`) unless they are there, and everything after follows them: a stage whose
recipe was changed is redone, and says so. A dataset is never removed: it holds answers that were paid for.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from longrl.footage.config import FootageConfig, load_footage
from longrl.footage.material import examine_footage, examine_machine
from longrl.footage.recipes import RECIPE_NAMES, FootagePlaces, write_recipes
from longrl.pipeline import Pipeline, Stage, open_pipeline
from longrl.quickstart.config import TRAIN_RL_LIMIT
from longrl.quickstart.embedding_plans import encode_splits
from longrl.quickstart.run import EVALUATIONS, count_records
from longrl.quickstart.shared_sampler import SharedSampler
from longrl.report.build import REPORT_NAME, SUMMARY_NAME, build_report, source_digest
from longrl.report.run_data import FOOTAGE_STAGES, RL_QUESTIONS_NAME, TRAINING_STAGES
from longrl_trainer.config.effects import result_settings
from longrl_trainer.config.stages import EvaluateConfig
from longrl_trainer.durable import write_text
from longrl_trainer.runs.digests import digest_of
from longrl_trainer.runs.progress import ProgressDisplay
from longvideo_reason_data.records.folder import RECORDS_NAME
from longvideo_reason_data.records.record import read_records
from mrsp_engine.embeddings.entry_folder import DIGESTS_NAME
from mrsp_engine.rollout.base import RolloutEngine

__all__ = ["STAGE_NAMES", "DatasetStage", "run_footage"]

CONFIG_NAME = "config.json"
STAGE_NAMES = (*FOOTAGE_STAGES, *TRAINING_STAGES, "report")
AROUND_GRPO = ("sft", "grpo")
"""Models that are asked GRPO's own questions too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStage:
    """How the dataset is made.

    Attributes:
        settings: What affects it, as plain values.
        build: Builds it, or goes on.
    """

    settings: Mapping[str, Any]
    build: Callable[[], None]


def run_footage(
    places: FootagePlaces, dataset: DatasetStage, progress: ProgressDisplay, console: Console
) -> dict[str, Any]:
    """Run what is not done yet; returns the contents of `report.json`.

    Args:
        places: Where everything lies.
        dataset: How the dataset is made.
        progress: Where progress is shown.
        console: Where the stages are told.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    own_names = {*RECIPE_NAMES, places.dataset.name}
    with open_pipeline(places.output, say, own_names) as pipeline:
        pipeline.require_own(STAGE_NAMES)
        pipeline.run(_build_stage(places, dataset))
        if not all((places.output / name).exists() for name in RECIPE_NAMES):
            footage = examine_footage(places.dataset)
            for path in write_recipes(places, footage, examine_machine(), only_missing=True):
                say(f"written: {path}")
        config = load_footage(places)
        write_text(places.output / CONFIG_NAME, json.dumps(config.as_json(), indent=2) + "\n")
        run = FootageRun(places, config, pipeline, progress)
        try:
            return [pipeline.run(stage) for stage in run.create_stages()][-1].result
        finally:
            run.sampler.close()


def _build_stage(places: FootagePlaces, dataset: DatasetStage) -> Stage:
    def build() -> Mapping[str, Any]:
        dataset.build()
        return count_records(read_records(places.dataset / RECORDS_NAME))

    return Stage(
        name="build",
        settings=dataset.settings,
        outputs=(f"{places.dataset.name}/{RECORDS_NAME}",),  # a view or an export may be added
        is_kept=True,
        run=build,
    )


class FootageRun:
    """Shared by the stages after the dataset: the recipes, their pipeline and one sampler."""

    def __init__(
        self, places: FootagePlaces, config: FootageConfig, pipeline: Pipeline, progress: ProgressDisplay
    ) -> None:
        self.places, self.config, self.pipeline, self.progress = places, config, pipeline, progress
        longest = max(config.grpo.max_response_tokens, config.evaluate.max_response_tokens)
        self.sampler = SharedSampler(
            config.grpo.model_copy(update={"max_response_tokens": longest}),
            places.model,
            lambda: int(pipeline.result("encode")["longest_prompt_tokens"]),
        )

    def create_stages(self) -> list[Stage]:
        """The stages after the dataset, in order."""
        config, places = self.config, self.places
        plans = [config.sft.data, config.grpo.data, config.evaluate.data]
        return [
            Stage(
                name="encode",
                settings={
                    "model": digest_of(places.model, "`--model`", outside=(places.output,)),
                    "plans": [result_settings(data) for data in plans],
                },
                after=("build",),
                outputs=(places.store.name,),
                notes=(f"{places.store.name}/{DIGESTS_NAME}",),
                is_kept=True,
                run=self.encode,
            ),
            self._evaluation_stage("untrained", places.model, after="encode"),
            Stage(
                name="sft",
                settings=result_settings(config.sft),
                after=("encode",),
                outputs=(places.sft.name,),
                run=self.train_sft,
            ),
            self._evaluation_stage("sft", places.sft / "model", after="sft"),
            Stage(
                name="grpo",
                settings=result_settings(config.grpo),
                after=("sft",),
                outputs=(places.grpo.name,),
                run=self.train_grpo,
            ),
            self._evaluation_stage("grpo", places.grpo / "model", after="grpo"),
            self._evaluation_stage("blind", places.grpo / "model", after="grpo"),
            Stage(
                name="report",
                settings={"source": source_digest()},
                after=("evaluate-untrained", "evaluate-sft", "evaluate-grpo", "evaluate-blind"),
                outputs=(REPORT_NAME, SUMMARY_NAME),
                run=lambda: build_report(places.output),
            ),
        ]

    def encode(self) -> Mapping[str, Any]:
        """Encode every video once for every number of frames that a later stage shows."""
        from longrl_trainer.training.opening import open_policy
        from mrsp_engine.embeddings.store import EmbeddingStore

        config = self.config
        policy = open_policy(config.sft.model, config.sft.dtype)
        policy.freeze_vision()
        longest = encode_splits(policy, [config.sft.data, config.grpo.data, config.evaluate.data], self.progress)
        return {"encodes": EmbeddingStore(self.places.store).counters.encodes, "longest_prompt_tokens": longest}

    def train_sft(self) -> Mapping[str, Any]:
        """CoT-SFT."""
        from longrl_trainer.sft import train_sft

        engine = self._engine() if self.config.sft.evaluation.every_steps else None
        result = train_sft(self.config.sft, progress=self.progress, engine=engine)
        return {"num_steps": result.num_steps, "final_loss": result.final_loss, "questions": result.questions}

    def train_grpo(self) -> Mapping[str, Any]:
        """GRPO."""
        from longrl_trainer.grpo import train_grpo

        result = train_grpo(self.config.grpo, engine=self._engine(), progress=self.progress)
        return {
            "num_steps": result.num_steps,
            "logprob_gap": {"mean_abs": result.logprob_gap_mean_abs, "max_abs": result.logprob_gap_max_abs},
            "questions": result.questions,
        }

    def _engine(self) -> RolloutEngine | None:
        """The shared sampler; None where a stage opens its own, which adapters need."""
        return None if self.config.grpo.lora.rank is not None else self.sampler.open()

    def _evaluation_stage(self, name: str, model: Path, *, after: str) -> Stage:
        settings = result_settings(self.config.evaluate) | {"blind": name == "blind"}
        if name in AROUND_GRPO:
            settings |= {"train_rl": result_settings(self.config.grpo.data), "train_rl_limit": TRAIN_RL_LIMIT}
        return Stage(
            name=f"evaluate-{name}",
            settings={key: value for key, value in settings.items() if key not in ("model", "output")},
            after=(after,),
            outputs=(f"{EVALUATIONS}/{name}",),
            run=lambda: self._evaluate(name, model),
        )

    def _evaluate(self, name: str, model: Path) -> Mapping[str, Any]:
        """Evaluate the held-out questions, and around GRPO some of those that it trains on."""
        from longrl_trainer.evaluation.evaluate import evaluate
        from longrl_trainer.training.opening import open_policy

        recipe, folder = self.config.evaluate, self.places.output / EVALUATIONS / name
        section = recipe.model.model_copy(update={"folder": model})
        policy = open_policy(section, recipe.dtype)
        policy.freeze_vision()
        held_out: EvaluateConfig = recipe.model_copy(
            update={
                "model": section,
                "output": folder / f"{self.config.num_frames}-frames.json",
                "blind": name == "blind",
                "step": None,
            }
        )
        result = evaluate(held_out, policy, engine=self._engine(), progress=self.progress)
        on_rl_questions = folder / RL_QUESTIONS_NAME
        if name in AROUND_GRPO and not on_rl_questions.exists():
            changes = {"data": self.config.grpo.data, "output": on_rl_questions, "limit": TRAIN_RL_LIMIT}
            evaluate(held_out.model_copy(update=changes), policy, engine=self._engine(), progress=self.progress)
        return {"accuracy": result.accuracy, "questions": result.questions}
