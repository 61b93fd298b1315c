"""`longrl start`: from videos to a report. Its options are its own and those of a build.

It is loaded when it is called: the settings of a build load the libraries that read videos.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from longrl.footage.material import require_checkpoint
from longrl.footage.recipes import FootagePlaces
from longrl.footage.splits import settle_splits
from longrl.pipeline import digest_json
from longrl.progress import choose_progress
from longvideo_reason_data.commands.build import build
from longvideo_reason_data.filtering.settings import FilterSettings
from longvideo_reason_data.generation.settings import BuildSettings
from longvideo_reason_data.language_model.settings import ClientSettings
from longvideo_reason_data.media.containers import find_videos
from longvideo_reason_data.media.video_file import digest_file

__all__ = ["start"]

Files = Annotated[tuple[Path, ...], tyro.conf.Positional]


def start(
    videos: Files,
    base_url: str,
    served_model: str,
    model: Path,
    output: Path = Path("runs/start"),
    captioner: str | None = None,
    judge: str | None = None,
    prompts: Path | None = None,
    filter: Literal["answers", "none"] = "answers",  # noqa: A002 - the name of the option
    filters: FilterSettings = FilterSettings(),  # noqa: B008 - tyro shows it as the default
    settings: Annotated[BuildSettings, tyro.conf.arg(name="")] = BuildSettings(),  # noqa: B008 - tyro shows it as the default
    estimate: bool = False,
    replace: bool = False,
) -> None:
    """From a folder of your own videos to a trained model and a report, in one command that can be interrupted.

    Builds a dataset with a language model behind a server, writes recipes for the checkpoint and this machine, encodes
    every video once, trains by imitation (CoT-SFT) and by reward (GRPO), evaluates on videos not used in training, and
    writes OUTPUT/report.html. The same command continues where it stopped. Change OUTPUT/sft.toml, grpo.toml or
    evaluate.toml, start it again, and what depends on the change is redone. The options of the build are those of
    longvideo-data build, except that its --model is --served-model here.

    Example: longrl start films --base-url http://localhost:8000/v1 --served-model Qwen3-VL-32B
    --model checkpoints/Qwen2.5-VL-3B-Instruct --output mine

    Args:
        videos: Video files, or folders that are searched for them.
        base_url: Address of a server that speaks the OpenAI protocol, up to and including /v1.
        served_model: Name of the model behind it, which writes the questions.
        model: Folder of the checkpoint to train.
        output: Folder for all output.
        captioner: Name of the served model that sees the frames; by default the same.
        judge: Name of a served model other than the captioner, which compares open answers and answers from the
            reasoning alone.
        prompts: Folder with prompts to use instead of the built-in ones.
        filter: "answers" keeps questions that need their video; "none" keeps all.
        filters: How questions are answered, and what is kept.
        settings: Other settings of the build. Of few videos, splits and seed are chosen so that no split is empty.
        estimate: Only print the calls, tokens and cost of the build; nothing is sent.
        replace: Build the dataset anew where it was built with other settings; answers that were paid for stay.
    """
    require_checkpoint(model)
    places = FootagePlaces.of(output, model)
    digests = sorted({digest_file(path) for path in find_videos(videos)})
    settled = settle_splits(settings, digests, places.dataset)

    def build_dataset() -> None:
        build(
            videos=videos,
            output=places.dataset,
            base_url=base_url,
            model=served_model,
            captioner=captioner,
            prompts=prompts,
            filter=filter,
            judge=judge,
            filters=filters,
            settings=settled,
            estimate=estimate,
            replace=replace,
        )

    if estimate:
        build_dataset()
        return
    shaping: dict[str, Any] = {
        "footage": {"number": len(digests), "sha256": digest_json(digests)},
        "models": {"served": served_model, "captioner": captioner or served_model, "judge": judge},
        "filter": filter,
        "filters": filters.model_dump(mode="json"),
        "settings": settled.model_dump(mode="json", exclude={*ClientSettings.model_fields, "subtitles"}),
    }
    from longrl.footage.run import DatasetStage, run_footage
    from longrl.quickstart.outcome import print_summary

    stage = DatasetStage(settings=shaping, build=build_dataset)
    summary = run_footage(places, stage, choose_progress(), Console(stderr=True))
    print_summary(output, summary, Console())
