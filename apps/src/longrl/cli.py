"""The command `longrl`: its subcommands and its error messages.

Imports nothing heavy: a command imports what it needs when it runs, so that help appears at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ValidationError
from safetensors import SafetensorError

from longrl.commands import benchmark as benchmark_commands
from longrl.commands import evaluation as evaluation_commands
from longrl.commands import export as export_command
from longrl.commands import generation as generation_commands
from longrl.commands import launch as launch_commands
from longrl.commands import pipelines as pipeline_commands
from longrl.commands import plan as plan_command
from longrl.commands import recipes as recipe_commands
from longrl.commands import rehearse as rehearse_command
from longrl.commands import store as store_command
from longrl.commands import watch as watch_command
from longrl.cpu_settings import settle_on_processor
from longrl.errors import AppError, AppUsageError
from longrl.tiny_model import TinyModelSettings, build_tiny_model
from longrl_files.messages import LINE_CHARACTERS, error_line, visible
from longrl_files.regular_files import read_bounded
from longrl_trainer.config.sections import FrameSettings
from longrl_trainer.errors import SignalledError, TrainerError
from longvideo_reason_data.endings import end_quietly
from longvideo_reason_data.errors import DataError
from mrsp_engine.errors import EngineError

DESCRIPTION = "Reinforcement learning on long videos: the whole pipeline, its stages one by one, and the report."

TRAINABLE_FAMILY = "qwen2_5_vl"

Files = Annotated[tuple[Path, ...], tyro.conf.Positional]
Folder = Annotated[Path, tyro.conf.Positional]


def tiny_model(
    output: Path,
    dataset: Path | None = None,
    corpus: tuple[Path, ...] = (),
    seed: int = 0,
    family: str = TRAINABLE_FAMILY,
    sizes: Annotated[TinyModelSettings, tyro.conf.arg(name="")] = TinyModelSettings(),  # noqa: B008 - shown as default
) -> None:
    """Build a Qwen2.5-VL of a few million parameters, in the ordinary Hugging Face layout.

    Its tokenizer is trained on the given texts; without any, on stories of the timeline world. The weights are random
    and depend only on seed and sizes.

    Example: longrl tiny-model --output tiny

    Example: longrl tiny-model --output tiny --dataset world --hidden-size 256 --num-heads 8

    Example: longrl tiny-model --output tiny --family qwen3_vl

    Args:
        output: Folder of the checkpoint; it must not exist or be empty.
        dataset: Train the tokenizer on this dataset's questions and reasoning.
        corpus: Train the tokenizer on these text files.
        seed: Seed of the weights.
        family: Another family, such as qwen3_vl or vila, in one size and with its own tokenizer; for trials, not for
            training.
        sizes: Sizes of the model.
    """
    if family != TRAINABLE_FAMILY:
        from mrsp_engine.tiny.families import build_tiny

        if dataset is not None or corpus or sizes != TinyModelSettings():
            raise AppUsageError(
                f"--family {family}: has fixed sizes and its own tokenizer; omit --dataset, --corpus and the sizes"
            )
        build_tiny(family, output, seed)
        print(output)
        return
    from longrl.corpus import corpus_of_records, corpus_of_stories
    from longvideo_reason_data.records.folder import read_dataset

    texts: list[str] = []
    if dataset is not None:
        texts += corpus_of_records(read_dataset(dataset))
    for path in corpus:
        try:
            texts.append(read_bounded(path, error=AppUsageError).decode())
        except UnicodeDecodeError as error:
            raise AppUsageError(f"{path}: not UTF-8 text ({error.reason}), which --corpus expects") from None
    build_tiny_model(output, texts or corpus_of_stories(), sizes, seed=seed)
    print(output)


def encode(
    videos: Files,
    model: Path,
    store: Path = Path("embeddings"),
    frames: Annotated[FrameSettings, tyro.conf.arg(name="")] = FrameSettings(),  # noqa: B008 - shown as default
    allow_pickle_weights: bool = False,
) -> None:
    """Encode videos into the embedding store, so that training and evaluation find them there.

    Videos already in the store are neither decoded nor encoded again.

    Example: longrl encode films --model tiny --num-frames 256

    Example: longrl encode films --model tiny --fps 1 --max-frames 512 --frame-pixels 100352

    Example: longrl encode a.mp4 b.mkv --model checkpoints/Qwen2.5-VL-3B-Instruct --store embeddings

    Args:
        videos: Video files, or folders that are searched for them.
        model: Folder of the checkpoint with the vision tower.
        store: Folder of the embedding store.
        frames: How many frames, and how large; 64 frames by default.
        allow_pickle_weights: Load weights from pickles where the checkpoint has no safetensors.
    """
    from longrl.commands.encode import encode_videos
    from longrl_trainer.config.sections import ModelSection

    section = ModelSection(folder=model, store=store, allow_pickle_weights=allow_pickle_weights)
    encode_videos(videos, section, frames.or_frames(64))


def sft(recipe: Folder) -> None:
    """Train by imitation: a recipe, followed by any of its settings as options.

    Example: longrl sft apps/recipes/qwen2_5_vl_3b_sft.toml --epochs 2 --data.num-frames 128

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by recipe_commands")


def grpo(recipe: Folder) -> None:
    """Train by reward: a recipe, followed by any of its settings as options.

    Example: longrl grpo apps/recipes/qwen2_5_vl_3b_grpo.toml --group-size 16 --output runs/wide

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by recipe_commands")


def evaluate(recipe: Folder | None = None) -> None:
    """Measure accuracy on one split or on a published benchmark: a recipe, or all settings as options.

    Example: longrl evaluate --model.folder runs/grpo/model --data.dataset dataset --data.split held_out
    --data.num-frames 64 --output accuracy.json

    Example: longrl evaluate --benchmark videomme --path Video-MME --model.folder runs/grpo/model --frames 8 32 64
    --output runs/videomme

    Args:
        recipe: Settings in a TOML file.
    """
    raise NotImplementedError(f"{recipe}: handled by recipe_commands")


COMMANDS = {
    "quickstart": pipeline_commands.quickstart,
    "start": pipeline_commands.start_help,
    "init": pipeline_commands.init,
    "tiny-model": tiny_model,
    "encode": encode,
    "sft": sft,
    "grpo": grpo,
    **generation_commands.HELP,
    **launch_commands.HELP,
    "evaluate": evaluate,
    "compare": evaluation_commands.compare,
    "export": export_command.export,
    "report": watch_command.report,
    "watch": watch_command.watch,
    "store": store_command.store,
    "plan": plan_command.plan,
    "rehearse": rehearse_command.rehearse,
    "benchmark": benchmark_commands.benchmark,
}


RECIPE_COMMANDS = {
    **recipe_commands.COMMANDS,
    **generation_commands.COMMANDS,
    **launch_commands.COMMANDS,
    "start": pipeline_commands.start,
    "evaluate": evaluation_commands.evaluate,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments after the command's name; by default those of this process.

    Returns:
        0, or 1 for a failure, 2 for a wrong request, 130 for an interruption, 141 for a closed output pipe.
    """
    return end_quietly(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    settle_on_processor()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # Their options are the fields of the recipe's model, with the recipe's values as defaults, so it is read first.
        if arguments and (command := RECIPE_COMMANDS.get(arguments[0])):
            recipe_commands.run(arguments[0], command, arguments[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="longrl",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.EnumChoicesFromValues,),
            )
    except SignalledError as error:
        print(visible(str(error), LINE_CHARACTERS), file=sys.stderr)
        return error.exit_code
    except (AppError, TrainerError, EngineError, DataError) as error:
        _say(str(error) or type(error).__name__)
        return error.exit_code
    except ValidationError as error:
        _say(recipe_commands.describe_invalid_options(error))
        return AppUsageError.exit_code
    except SafetensorError as error:
        _say(f"a file of tensors can't be written or read: {error}; is the disk full?")
        return AppError.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}")
        return AppError.exit_code
    return 0


def _say(message: str) -> None:
    """Print why the command ends, in one line that no text from outside can break."""
    print(error_line(message), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
