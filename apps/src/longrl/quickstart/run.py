"""The whole pipeline in one command: rendered videos, records, model, embeddings, CoT-SFT, GRPO, evaluation, report.

Every part is the same as on a large machine; only the world and the model are small. `create_stages` reads as the list
of stages; each entry states what affects it and what it writes.
"""

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from longrl.corpus import corpus_of_records
from longrl.errors import AppError
from longrl.pipeline import Pipeline, Stage, open_pipeline
from longrl.quickstart.config import Lacking, QuickstartConfig, shaping_settings
from longrl.quickstart.embedding_plans import count_plans, encode_splits
from longrl.quickstart.shared_sampler import SharedSampler
from longrl.report.build import REPORT_NAME, SUMMARY_NAME, build_report, source_digest
from longrl.report.run_data import HEARING_STAGES, RL_QUESTIONS_NAME
from longrl.tiny_model import build_tiny_model
from longrl_trainer.config.recipes import save_config
from longrl_trainer.questions.frames import plan_frames
from longrl_trainer.runs.progress import ProgressDisplay
from longvideo_reason_data.records.medium import open_medium
from longvideo_reason_data.records.record import QuestionRecord, Split, list_media, read_records
from longvideo_reason_data.timeline.dataset import write_timeline_dataset
from mrsp_engine.embeddings.entry_folder import DIGESTS_NAME

EVALUATIONS = "evaluations"
CALIBRATION_VIDEOS = 32


def run_quickstart(config: QuickstartConfig, progress: ProgressDisplay, console: Console) -> dict[str, Any]:
    """Run what is not done yet; returns the contents of `report.json`."""
    with open_pipeline(config.output, lambda line: console.print(line, highlight=False, soft_wrap=True)) as pipeline:
        quickstart = Quickstart(config, pipeline, progress)
        stages = quickstart.create_stages()
        pipeline.require_own({stage.name for stage in stages})
        save_config(config, config.output)
        offer_page(config.output, console)
        try:
            return [pipeline.run(stage) for stage in stages][-1].result
        finally:
            quickstart.sampler.close()


def offer_page(output: Path, console: Console) -> None:
    """Say how to watch in the browser: the first videos are there in a moment."""
    program = "uv run --no-sync longrl" if "UV" in os.environ else "longrl"
    command = f"{program} watch {shlex.quote(str(output))}"
    line = f"  to see the videos, and then the training, type in another terminal: {command}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class Quickstart:
    """Shared by the stages: the configuration, their pipeline and one sampler."""

    def __init__(self, config: QuickstartConfig, pipeline: Pipeline, progress: ProgressDisplay) -> None:
        self.config = config
        self.output = config.output
        self.pipeline = pipeline
        self.progress = progress
        self.sampler = SharedSampler(
            config.grpo, config.sft.model.folder, lambda: int(pipeline.result("encode")["longest_prompt_tokens"])
        )

    def create_stages(self) -> list[Stage]:
        """All stages in order."""
        config = self.config
        asking = shaping_settings(config.evaluation_config(self.output, self.output, num_frames=1))
        del asking["data"]["num_frames"]
        on_rl_questions = {"train_rl_limit": config.evaluation.train_rl_limit}
        main, frame_counts = config.main_frames, list(config.evaluation.num_frames)
        trained, final = config.sft.output / "model", config.grpo.output / "model"
        lacking: tuple[Lacking, ...] = ("blind", *(HEARING_STAGES if config.world.sound else ()))
        return [
            Stage(
                name="world",
                settings={"seed": config.seed, "world": config.world.model_dump(mode="json")},
                outputs=("dataset",),
                run=self.render_world,
            ),
            Stage(
                name="model",
                settings={"seed": config.seed, "model": config.model.model_dump(mode="json")},
                after=("world",),
                outputs=("model",),
                run=self.build_model,
            ),
            Stage(
                name="encode",
                settings={
                    "plans": [data.model_dump(mode="json", exclude={"dataset"}) for data in config.data_in_use()]
                },
                after=("world", "model"),
                outputs=("embeddings",),
                notes=(f"embeddings/{DIGESTS_NAME}",),
                run=self.encode,
            ),
            self._evaluation_stage("untrained", config.sft.model.folder, asking, after="encode", frames=[main]),
            Stage(
                name="sft",
                settings=shaping_settings(config.sft),
                after=("encode",),
                outputs=("sft",),
                run=self.train_sft,
            ),
            self._evaluation_stage("sft", trained, asking | on_rl_questions, after="sft", frames=[main]),
            Stage(
                name="grpo",
                settings=shaping_settings(config.grpo),
                after=("sft",),
                outputs=("grpo",),
                run=self.train_grpo,
            ),
            self._evaluation_stage("grpo", final, asking | on_rl_questions, after="grpo", frames=frame_counts),
            *(
                self._evaluation_stage(name, final, asking, after="grpo", frames=[main], lacking=name)
                for name in lacking
            ),
            Stage(
                name="report",
                settings={"seed": config.seed, "source": source_digest()},
                after=tuple(f"evaluate-{name}" for name in ("untrained", "sft", "grpo", *lacking)),
                outputs=(REPORT_NAME, SUMMARY_NAME),
                run=self.report,
            ),
        ]

    def render_world(self) -> Mapping[str, Any]:
        """Render the videos and write the records."""
        world, dataset = self.config.world, self.output / "dataset"
        for unfinished in (dataset / "videos").glob(".*.part"):
            unfinished.unlink()
        with self.progress.task("Render videos", total=sum(world.videos().values())) as bar:
            records = write_timeline_dataset(
                dataset,
                world.world(),
                videos=world.videos(),
                questions_per_video=world.questions_per_video,
                seed=self.config.seed,
                hasty_fraction=world.hasty_fraction,
                progress=_advance_to(bar.advance),
            )
        return count_records(records)

    def build_model(self) -> Mapping[str, Any]:
        """Build the untrained checkpoint; its tokenizer is trained on training questions only."""
        folder = self.config.sft.model.folder
        for leftover in (folder, *folder.parent.glob(f".{folder.name}-*")):
            if leftover.exists():
                shutil.rmtree(leftover)
        seen = [record for record in self._records() if record.split is not Split.HELD_OUT]
        build_tiny_model(
            folder,
            corpus_of_records(seen),
            self.config.model,
            seed=self.config.seed,
            calibration_videos=self._sample_videos(seen),
        )
        return {}

    def _sample_videos(self, records: list[QuestionRecord]) -> list[NDArray[np.uint8]]:
        """Frames of a few training videos, like those used in training."""
        data = self.config.sft.data
        media = list(list_media(record for record in records if record.split == data.split).values())
        videos = [open_medium(data.dataset, medium) for medium in media[:CALIBRATION_VIDEOS]]
        return [video.read(plan_frames(video, data)) for video in videos]

    def encode(self) -> Mapping[str, Any]:
        """Encode every video once for every number of frames that a later stage uses."""
        from longrl_trainer.training.opening import open_policy

        policy = open_policy(self.config.sft.model, self.config.sft.dtype)
        policy.freeze_vision()
        longest = encode_splits(policy, self.config.data_in_use(), self.progress)
        num_plans = count_plans(self.config.data_in_use())
        return {"encodes": self._count_encodes(num_plans), "plans": num_plans, "longest_prompt_tokens": longest}

    def train_sft(self) -> Mapping[str, Any]:
        """CoT-SFT."""
        from longrl_trainer.sft import train_sft

        engine = self.sampler.open() if self.config.sft.evaluation.every_steps else None
        result = train_sft(self.config.sft, progress=self.progress, engine=engine)
        return {"num_steps": result.num_steps, "final_loss": result.final_loss, "questions": result.questions}

    def train_grpo(self) -> Mapping[str, Any]:
        """GRPO."""
        from longrl_trainer.grpo import train_grpo

        result = train_grpo(self.config.grpo, engine=self.sampler.open(), progress=self.progress)
        return {
            "num_steps": result.num_steps,
            "logprob_gap": {"mean_abs": result.logprob_gap_mean_abs, "max_abs": result.logprob_gap_max_abs},
            "questions": result.questions,
        }

    def report(self) -> Mapping[str, Any]:
        """Write the report, after making sure that no later stage has encoded anything."""
        self._count_encodes(self.pipeline.result("encode")["plans"])
        return build_report(self.output)

    def _evaluation_stage(
        self,
        name: str,
        model_folder: Path,
        asking: Mapping[str, Any],
        *,
        after: str,
        frames: list[int],
        lacking: Lacking | None = None,
    ) -> Stage:
        with_rl_questions = "train_rl_limit" in asking
        return Stage(
            name=f"evaluate-{name}",
            settings={**asking, "lacking": lacking, "num_frames": frames},
            after=(after,),
            outputs=(f"{EVALUATIONS}/{name}",),
            run=lambda: self._evaluate(name, model_folder, frames, lacking, with_rl_questions=with_rl_questions),
        )

    def _evaluate(
        self, name: str, model_folder: Path, frames: list[int], lacking: Lacking | None, *, with_rl_questions: bool
    ) -> Mapping[str, Any]:
        """Do the evaluations that are missing: one for each number of frames, and that on the questions of GRPO."""
        from longrl_trainer.evaluation.evaluate import evaluate
        from longrl_trainer.training.opening import open_policy

        folder = self.output / EVALUATIONS / name
        asked = [
            self.config.evaluation_config(
                model_folder, folder / f"{num_frames}-frames.json", num_frames=num_frames, lacking=lacking
            )
            for num_frames in frames
        ]
        if with_rl_questions:
            asked.append(self.config.rl_questions_config(model_folder, folder / RL_QUESTIONS_NAME))
        policy = open_policy(self.config.grpo.model.model_copy(update={"folder": model_folder}), self.config.grpo.dtype)
        policy.freeze_vision()
        for config in asked:
            if not config.output.exists():
                evaluate(config, policy, engine=self.sampler.open(), progress=self.progress)
        return {}

    def _count_encodes(self, num_plans: int) -> int:
        """Check that the store has encoded exactly what the records require."""
        from mrsp_engine.embeddings.store import EmbeddingStore

        store = self.config.sft.model.store
        num_encodes = EmbeddingStore(store).counters.encodes
        if num_encodes != num_plans:
            raise AppError(
                f"{store}: {num_encodes} encodes for {num_plans} different (video, frames) pairs, expected as many; "
                "an entry was lost or encoded twice: remove this folder and start again"
            )
        return num_encodes

    def _records(self) -> list[QuestionRecord]:
        return read_records(self.output / "dataset" / "records.parquet")


def count_records(records: list[QuestionRecord]) -> dict[str, Any]:
    """Videos, and questions by split."""
    return {
        "videos": len(list_media(records)),
        "questions": {str(split): sum(record.split is split for record in records) for split in Split},
    }


def _advance_to(advance: Callable[..., None]) -> Callable[[int, int], None]:
    """Adapt a bar to a callback that receives the total done instead of the increment."""
    shown = 0

    def follow(done: int, total: int) -> None:
        nonlocal shown
        advance(done - shown, note=f"{total} videos")
        shown = done

    return follow
