"""`longrl sft` and `grpo`, and what they share with `evaluate`: a recipe first, then options that override it.

The options are the fields of the recipe's own model, with the recipe's values as defaults, so every setting of a recipe
is also an option. Imports the trainer only when a command runs.
"""

import io
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar, get_args

import tyro
from pydantic import BaseModel, ValidationError

from longrl.errors import AppUsageError
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.errors import TrainerUsageError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

HELP_OPTIONS = ("-h", "--help")


def run(command: str, function: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Run a command with the arguments after its name."""
    is_help = any(argument in HELP_OPTIONS for argument in arguments)
    if command in NEED_RECIPE and not has_recipe(arguments) and not is_help:
        raise AppUsageError(f"longrl {command} needs a recipe as its first argument; see longrl {command} --help")
    # Under torchrun all processes do the same, and the first one writes the output.
    is_first = os.environ.get("RANK", "0") == "0"
    with redirect_stdout(sys.stdout if is_first else io.StringIO()):
        function(arguments)


def resolve_config(command: str, arguments: Sequence[str], model: type[ConfigT], *, example: str) -> ConfigT:
    """Read the recipe, if one is given, and let the options override it."""
    description = f"{(model.__doc__ or '').strip()}\n\nExample: {example}"
    if has_recipe(arguments):
        default = _load_recipe(command, Path(arguments[0]), model)
        prog, options = f"longrl {command} {arguments[0]}", arguments[1:]
    else:
        default = tyro.MISSING
        prog, options = f"longrl {command} {'RECIPE' if command in NEED_RECIPE else '[RECIPE]'}", arguments
    messages = io.StringIO()
    try:
        with redirect_stderr(messages):
            return tyro.cli(
                model,
                prog=prog,
                description=description,
                default=default,
                args=options,
                config=(tyro.conf.EnumChoicesFromValues,),
            )
    except SystemExit as refusal:
        # Pydantic's errors about a value are reduced to one line; tyro's about an option's name are fine as they are.
        invalid = _validation_error_behind(refusal)
        if invalid is not None:
            raise AppUsageError(describe_invalid_options(invalid, model, options)) from None
        print(messages.getvalue(), end="", file=sys.stderr)
        raise


def _load_recipe(command: str, path: Path, model: type[ConfigT]) -> ConfigT:
    """Read a command's recipe; one that is right for another command is said to be of that."""
    try:
        return load_recipe(path, model)
    except TrainerUsageError:
        if path.is_file():
            other = _other_command(command, path)
            if other is not None:
                raise AppUsageError(
                    f"{path}: this looks like a recipe of `longrl {other}`, not of `longrl {command}`; start it with "
                    "that"
                ) from None
        raise


def _other_command(command: str, path: Path) -> str | None:
    """The command, if it is another one, by which the recipe can be read."""
    from longrl.stages import command_of, model_of, read_tables

    try:
        tables = read_tables(path)
        other = command_of(tables)
        if other == command:
            return None
        if other != "quickstart":
            load_recipe(path, model_of(other, tables))
    except TrainerUsageError:
        return None
    return other


def describe_invalid_options(
    error: ValidationError, model: type[BaseModel] | None = None, options: Sequence[str] = ()
) -> str:
    """One line for options that the recipe's model rejects.

    Args:
        error: Of the model, or of one of its sections, which tyro creates by themselves: it names no place above them.
        model: The recipe's model.
        options: The options, which tell sections of one kind apart.
    """
    first = error.errors()[0]
    places = [] if model is None else [".".join(place) for place in _places_of(error.title, model)]
    given = [option.replace("_", "-") for option in options]
    inner = [str(part) for part in first["loc"]]
    names = [".".join([place, *inner] if place else inner).replace("_", "-") for place in places or [""]]
    option = next((name for name in names if any(f"--{name}" == each.split("=")[0] for each in given)), names[0])
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "expected", 1)
    if not inner:
        return f"{option}: {message}" if option else message
    return f"--{option} {first['input']}: {message}"


def _places_of(title: str, model: type[BaseModel]) -> Generator[tuple[str, ...]]:
    """Where a model of this name is: at the top, with an empty place, or in which fields."""
    if model.__name__ == title:
        yield ()
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((name, *place) for place in _places_of(title, kind))


def sft(arguments: Sequence[str]) -> None:
    """Train by imitation."""
    from longrl_trainer.config.stages import SftConfig

    config = resolve_config(
        "sft",
        arguments,
        SftConfig,
        example="longrl sft apps/recipes/qwen2_5_vl_3b_sft.toml --epochs 2 --data.num-frames 128",
    )
    from longrl.progress import choose_progress
    from longrl_trainer.sft import train_sft

    result = train_sft(config, progress=choose_progress())
    print(f"{result.num_steps} steps, loss {result.final_loss:.4f}; {describe_questions(result.questions)}")
    print(result.model_folder)


def grpo(arguments: Sequence[str]) -> None:
    """Train by reward."""
    from longrl_trainer.config.stages import GrpoConfig

    config = resolve_config(
        "grpo",
        arguments,
        GrpoConfig,
        example=(
            "longrl grpo apps/recipes/qwen2_5_vl_3b_grpo.toml --group-size 16 --output runs/wide\n"
            "On 8 GPUs: longrl launch RECIPE --gpus 8"
        ),
    )
    from longrl.progress import choose_progress
    from longrl_trainer.grpo import train_grpo

    result = train_grpo(config, progress=choose_progress())
    rewards = [reward for reward in result.rewards if reward is not None]
    print(
        f"{result.num_steps} steps, reward {rewards[0]:.3f} → {rewards[-1]:.3f}, log-prob gap "
        f"{result.logprob_gap_mean_abs:.1e}; {describe_questions(result.questions)}"
    )
    print(result.model_folder)


COMMANDS = {"sft": sft, "grpo": grpo}
NEED_RECIPE = frozenset({"sft", "grpo", "generate", "generate-grpo", "launch"})


def has_recipe(arguments: Sequence[str]) -> bool:
    """Whether the arguments begin with a recipe."""
    return bool(arguments) and not arguments[0].startswith("-")


def _validation_error_behind(error: BaseException | None) -> ValidationError | None:
    while error is not None and not isinstance(error, ValidationError):
        error = error.__cause__ or error.__context__
    return error


def describe_questions(questions: dict[str, object]) -> str:
    """How many questions were used, and why not the others."""
    dropped = questions["dropped"]
    reasons = f", dropped {dropped}" if dropped else ""
    return f"{questions['kept']} of {questions['input']} questions used{reasons}"
