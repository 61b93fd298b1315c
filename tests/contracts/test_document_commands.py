"""Commands in the documents and on the site are accepted by the programs, option by option; cheap ones are run.

So an option that is renamed, a recipe that moves or a value that isn't allowed any more is found where it is shown.
"""

import functools
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from longrl.cli import COMMANDS
from longrl.cli import main as longrl
from longrl.commands import benchmark, store
from longrl.commands.evaluation import names_benchmark
from longrl.commands.recipes import resolve_config
from longrl.footage.start import start
from longrl.stages import RECIPES_FOLDER, command_of, model_of, read_tables
from longrl_omni.generation.config.recipes import GenerateConfig, GenerateGrpoConfig
from longrl_trainer.config.benchmarks import BenchmarkConfig
from longrl_trainer.config.recipes import load_recipe
from longrl_trainer.config.stages import EvaluateConfig, GrpoConfig, SftConfig
from longvideo_reason_data.cli import COMMANDS as DATA_COMMANDS
from longvideo_reason_data.cli import main as longvideo_data

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "apps/*.md", "packages/*/README.md", "plugins/*/README.md", "docs/pages/**/*.md")
    for path in ROOT.glob(pattern)
    if "```bash" in path.read_text(encoding="utf-8")
)
OTHERS = {"uv", "pip", "git", ".ci/run", "tests/isolation/run", "evaluation/bin/lmms-eval"}
"""Programs whose options aren't ours; the files that they get are looked for."""
RECIPE_MODELS: dict[str, type[Any]] = {
    "sft": SftConfig,
    "grpo": GrpoConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "generate-grpo": GenerateGrpoConfig,
}
STAND_INS = {
    "sft": "qwen2_5_vl_3b_sft.toml",
    "grpo": "qwen2_5_vl_3b_grpo.toml",
    "launch": "qwen2_5_vl_7b_grpo.toml",
    "generate": "pictures_generate.toml",
    "generate-grpo": "sd3_5_medium_generate_grpo.toml",
}
"""For recipes that are only named, such as `my.toml`."""
NESTED: dict[str, tuple[Callable[..., None], ...]] = {
    "store": (store.stats, store.verify, store.prune),
    "benchmark": (benchmark.step, benchmark.attention, benchmark.rank, benchmark.generation),
}
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"^```toml title=\"([\w.]+)\"\n(.*?)^```", re.MULTILINE | re.DOTALL)
OWN_FILE = re.compile(r"(?:\./)?(?:apps|packages|plugins|tests|benchmarks|docs|locked|\.ci)/")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands_in(text: str) -> list[list[str]]:
    """The words of every command in the blocks of a text."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    found: list[list[str]] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return [words for words in found if words]


def own_words(words: list[str]) -> tuple[str, list[str]] | None:
    """The program of this project that a command starts, and its arguments."""
    for place, word in enumerate(words):
        if words[0] in OTHERS - {"uv"}:
            return None
        name = word.removeprefix(".venv/bin/")
        if name in ("longrl", "longvideo-data"):
            return name, words[place + 1 :]
    return None


def accept_only(function: Callable[..., None]) -> Callable[..., None]:
    """A command with the same options that does nothing."""

    @functools.wraps(function)
    def accepted(*_: object, **__: object) -> None:
        return None

    return accepted


def parse(functions: dict[str, Callable[..., None]], arguments: list[str]) -> None:
    """Let the parser of a command read its arguments, without running it."""
    tyro.extras.subcommand_cli_from_dict(
        {name: accept_only(function) for name, function in functions.items()},
        args=arguments,
        config=(tyro.conf.EnumChoicesFromValues,),
    )


def check(program: str, arguments: list[str]) -> None:
    """Fail if the program wouldn't accept the arguments; run what costs nothing."""
    if program == "longvideo-data":
        parse(dict(DATA_COMMANDS), arguments)
        return
    command, rest = arguments[0], arguments[1:]
    assert command in COMMANDS, arguments
    if rest and not rest[0].startswith("-") and command in STAND_INS and not Path(rest[0]).is_file():
        assert not rest[0].startswith("apps/"), rest[0]
        rest[0] = str(RECIPES_FOLDER / STAND_INS[command])
    if command == "launch":
        assert longrl(["launch", *rest, *([] if "--print" in rest else ["--print"])]) == 0
    elif command in RECIPE_MODELS:
        model = BenchmarkConfig if command == "evaluate" and names_benchmark(rest) else RECIPE_MODELS[command]
        resolve_config(command, rest, model, example="")
    elif command == "start":
        parse({"start": start}, arguments)
    elif command in NESTED:
        parse({function.__name__: function for function in NESTED[command]}, rest)
    else:
        parse({name: function for name, function in COMMANDS.items() if name not in NESTED}, arguments)
        if command == "plan" and "checkpoints/mine" not in rest:
            assert longrl(arguments) == 0


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which the recipes are found as in the checkout."""
    (tmp_path / "apps").symlink_to(ROOT / "apps")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_command_is_accepted(document: Path, checkout: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name, recipe in RECIPE.findall(text):
        (checkout / name).write_text(recipe, encoding="utf-8")
    commands = commands_in(text)
    assert commands
    for words in commands:
        assert [word for word in words if OWN_FILE.match(word) and not (ROOT / word).exists()] == []
        own = own_words(words)
        if own is None:
            assert words[0] in OTHERS, words
            continue
        try:
            check(*own)
        except SystemExit as refusal:
            pytest.fail(f"{shlex.join(words)}: refused with {refusal.code}")


@pytest.mark.parametrize(
    "line",
    [
        "longrl grpo apps/recipes/qwen2_5_vl_3b_grpo.toml --groupsize 16",
        "longrl evaluate --benchmark videomme --path V --model.folder m --frame 8 --output o",
        "longrl launch apps/recipes/qwen2_5_vl_7b_grpo.toml --gpus 8 --node-ranks 1",
        "longrl store prune embeddings --kept 1GB",
        "longrl watch runs/grpo --port seven",
        "longvideo-data build --videos films --output d --base-url u --model m --questions.quotas.time 3",
    ],
)
def test_a_wrong_option_is_found(line: str, checkout: Path) -> None:
    found = own_words(shlex.split(line))
    assert found is not None
    with pytest.raises(SystemExit) as refused:
        check(*found)
    assert refused.value.code == 2


def test_every_recipe_on_a_page_parses(tmp_path: Path) -> None:
    found = [recipe for page in PAGES.rglob("*.md") for recipe in RECIPE.findall(page.read_text(encoding="utf-8"))]
    assert len(found) >= 2
    for name, recipe in found:
        path = tmp_path / name
        path.write_text(recipe, encoding="utf-8")
        tables = read_tables(path)
        load_recipe(path, model_of(command_of(tables), tables))


@pytest.mark.long
def test_the_first_run_by_hand_runs_as_printed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (PAGES / "first-run.md").read_text(encoding="utf-8").partition("\n## The same by hand")[2]
    for name, recipe in RECIPE.findall(text):
        (checkout / name).write_text(recipe, encoding="utf-8")
    commands = [own_words(words) for words in commands_in(text)]
    assert len(commands) >= 10
    for own in commands:
        assert own is not None
        program, arguments = own
        run = longrl if program == "longrl" else longvideo_data
        assert run(arguments) == 0, (arguments, capsys.readouterr().err)
    assert (checkout / "accuracy.json").is_file()
    assert (checkout / "runs" / "grpo" / "report.html").is_file()
    assert (checkout / "checkpoints" / "mine" / "config.json").is_file()
