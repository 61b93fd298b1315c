"""Step by step: few files are opened before a step, and what a step takes depends on seed and data alone."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from longrl_trainer.config.stages import GrpoConfig
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.grpo import open_questions, order_questions, train_grpo
from longrl_trainer.questions.order import Cursor, rounds_of_steps
from longrl_trainer.questions.prefetching import Prefetcher
from longrl_trainer.questions.step_media import storing
from longrl_trainer.rewards.registry import load_rewards
from longrl_trainer.runs.folder import open_run
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import train_sft
from longrl_trainer.training.opening import open_policy
from longrl_trainer.training.ranks import Ranks, join_ranks
from longvideo_reason_data.media.video_file import VideoFile
from longvideo_reason_data.records.record import write_records
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.testing.fixtures import run_on_ranks

NUM_FILES, NUM_STEPS = 24, 8
GRPO = {"steps": NUM_STEPS, "prompts_per_step": 2, "prefetch_steps": 2}


@pytest.fixture(scope="module")
def many(started, tmp_path_factory):
    """Two questions about each of many files, which are hard links to four."""
    dataset = tmp_path_factory.mktemp("many") / "dataset"
    films = [record.media[0] for record in started.records if record.split == "train_rl"][::2]
    asked = [record for record in started.records if record.split == "train_rl"]
    (dataset / "videos").mkdir(parents=True)
    records = []
    for number in range(NUM_FILES):
        film = films[number % len(films)]
        path = f"videos/{number:02}.mp4"
        os.link(started.dataset / film.path, dataset / path)
        for offset in range(2):
            record = asked[2 * (number % len(films)) + offset]
            media = (film.model_copy(update={"path": path}),)
            records.append(record.model_copy(update={"question_id": f"{number:02}-{offset}", "media": media}))
    write_records(dataset / "records.parquet", records)
    return dataclasses.replace(started, dataset=dataset, records=tuple(records))


@contextmanager
def feed_of(config: GrpoConfig, ranks: Ranks) -> Generator[Any]:
    policy = open_policy(config.model, config.dtype)
    with (
        open_run("grpo", config, model=config.model, data=config.data, ranks=ranks) as run,
        storing(policy, config),
        open_questions(config, run, policy, load_rewards(config.rewards), SilentProgress(), ranks) as feed,
    ):
        yield feed


def take_all(config: GrpoConfig, ranks: Ranks) -> tuple[list[list[str]], dict[str, Any]]:
    """The questions of every step, and what was dropped before which."""
    with feed_of(config, ranks) as feed:
        taken = [[item.record.question_id for row in feed.take(step).rows for item in row] for step in range(NUM_STEPS)]
    report = json.loads((config.output / "questions.json").read_text())
    assert feed.counts() == {name: report[name] for name in ("input", "kept", "dropped")}
    return taken, {item["question_id"]: item["found_before_step"] for item in report["dropped_questions"]}


def order_of(config: GrpoConfig, size: int) -> list[int]:
    """The places of the first epoch, in the order in which they would be taken."""
    whole = config.model_copy(update={"prompts_per_step": size})
    return [place for (place,) in order_questions(range(size), whole).select(Cursor(), lambda _: False).items]


def damage(dataset: Path, numbers: list[int]) -> None:
    for number in numbers:
        (dataset / f"videos/{number:02}.mp4").unlink()


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_only_files_of_coming_steps_are_opened(many, tmp_path, monkeypatch, prefetch_steps):
    config = many.grpo(tmp_path / "run", **GRPO | {"prefetch_steps": prefetch_steps})
    opened: list[str] = []
    whole, look_ahead = VideoFile.open, Prefetcher.look_ahead

    def note_and_open(path: Path) -> VideoFile:
        opened.append(path.name)
        return whole(path)

    def look_ahead_at_once(self: Prefetcher, *arguments: Any) -> None:
        look_ahead(self, *arguments)
        wait(self._jobs.values())

    monkeypatch.setattr(VideoFile, "open", note_and_open)
    monkeypatch.setattr(Prefetcher, "look_ahead", look_ahead_at_once)
    places = order_of(config, 2 * NUM_FILES)
    with feed_of(config, Ranks()) as feed:
        for step in range(NUM_STEPS):
            asked = feed.take(step).rows
            taken = [many.records[place].question_id for place in places[2 * step : 2 * step + 2]]
            assert [row[0].record.question_id for row in asked] == taken
            coming = places[: 2 * min(step + 1 + prefetch_steps, NUM_STEPS)]
            assert set(opened) == {Path(many.records[place].media[0].path).name for place in coming}
    shown = [many.records[place].media[0].path for place in places[: 2 * NUM_STEPS]]
    assert len(opened) <= len(shown)  # no file is opened twice for a question


def test_a_file_that_is_gone_gives_its_place_to_the_next_question(many, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(many.dataset, dataset)
    places = order_of(many.grpo(tmp_path / "any", **GRPO), 2 * NUM_FILES)
    gone = {place // 2 for place in (places[0], places[3], places[10])}
    damage(dataset, sorted(gone))
    options = GRPO | {"data__dataset": str(dataset)}
    expected = [many.records[place].question_id for place in places if place // 2 not in gone]
    seen = []
    for prefetch_steps in (0, 1, 5):
        config = many.grpo(tmp_path / f"run{prefetch_steps}", **options | {"prefetch_steps": prefetch_steps})
        seen.append(take_all(config, Ranks()))
        taken, dropped = seen[-1]
        assert taken == [expected[2 * step : 2 * step + 2] for step in range(NUM_STEPS)]
        assert {name[:2] for name in dropped} == {f"{number:02}" for number in gone}
        assert len(dropped) == 2 * len(gone)
        assert dropped[many.records[places[0]].question_id] == 1
    assert seen[0] == seen[1] == seen[2]


def take_on_ranks(values: str, folders: list[str]) -> Any:
    """Every rank has a copy of the dataset of its own; the first writes the run's folder."""
    config = GrpoConfig.model_validate_json(values)
    ranks = join_ranks(config.model)
    data = config.data.model_copy(update={"dataset": Path(folders[ranks.rank])})
    return take_all(config.model_copy(update={"data": data}), ranks)


@pytest.mark.slow
def test_ranks_take_the_same_questions_when_files_are_gone_on_one_only(many, tmp_path):
    config = many.grpo(tmp_path / "two", **GRPO, model__store=tmp_path / "store")
    places = order_of(config, 2 * NUM_FILES)
    gone = sorted({place // 2 for place in places[1:12:3]})
    copies = [tmp_path / "node0", tmp_path / "node1"]
    for copy in copies:
        shutil.copytree(many.dataset, copy)
    damage(copies[1], gone)
    first, second = run_on_ranks(take_on_ranks, 2, config.model_dump_json(), [str(copy) for copy in copies])
    assert first == second
    taken, dropped = first
    assert [len(asked) for asked in taken] == [2] * NUM_STEPS
    assert dropped
    assert {name[:2] for name in dropped} <= {f"{number:02}" for number in gone}
    # Gone everywhere, they are dropped like in one process.
    damage(copies[0], gone)
    together = many.grpo(tmp_path / "both", **GRPO, data__dataset=copies[0])
    alone = many.grpo(tmp_path / "alone", **GRPO, data__dataset=copies[0])
    both, again = run_on_ranks(take_on_ranks, 2, together.model_dump_json(), [str(copies[0])] * 2)
    assert both == again == take_all(alone, Ranks())


@pytest.mark.slow
def test_a_store_of_a_few_videos_is_enough(world, tmp_path):
    """With room for two of four videos a run ends as with room for all, and encodes some of them again."""
    sizes, losses, encodes = [], [], []
    for name, store_bytes in (("all", None), ("few", 1)):
        store = tmp_path / name
        size = None if store_bytes is None else sizes[0] * 5 // 8
        config = world.sft(tmp_path / f"run {name}", epochs=2, rows_per_step=1, model__store=store, prefetch_steps=1)
        config = config.model_copy(update={"model": config.model.model_copy(update={"store_bytes": size})})
        train_sft(config)
        losses.append([line["loss"] for line in read_json_lines(config.output / "metrics.jsonl")])
        found = EmbeddingStore(store)
        sizes.append(found.stats().bytes)
        encodes.append(found.counters.encodes)
    assert losses[0] == losses[1]
    assert sizes[1] <= sizes[0] * 5 // 8
    assert encodes[0] == 4 < encodes[1]


def test_a_recorded_drop_is_found_in_the_records_digest_alone(many, tmp_path):
    """A run that goes on doesn't open the file of a dropped question again."""
    dataset = tmp_path / "dataset"
    shutil.copytree(many.dataset, dataset)
    places = order_of(many.grpo(tmp_path / "any", **GRPO), 2 * NUM_FILES)
    film = dataset / many.records[places[0]].media[0].path
    content = film.read_bytes()
    film.unlink()
    options = GRPO | {"data__dataset": str(dataset), "max_response_tokens": 4, "checkpoint_every_steps": 1}
    train_grpo(many.grpo(tmp_path / "run", **options | {"steps": 1}))
    film.write_bytes(content)
    assert hashlib.sha256(content).hexdigest() == many.records[places[0]].media[0].digest
    result = train_grpo(many.grpo(tmp_path / "run", **options | {"steps": 2}))
    assert result.questions["dropped"] == {"unreadable_video": 2}
    seen = [group["question_id"] for group in read_json_lines(tmp_path / "run" / "rollouts.jsonl")]
    left = [many.records[p].question_id for p in places if many.records[p].media != many.records[places[0]].media]
    assert seen == left[:4]


def test_how_often_finished_steps_took_questions_is_in_the_journal():
    assert rounds_of_steps([None, 2.0, 3], 3) == [1, 2, 3]
    assert rounds_of_steps([2, 2, 2], 1) == [2]
    assert rounds_of_steps([], 2) == [1, 1]
    for wrong in (0, -1, 1.5, 1e9, float("nan")):
        with pytest.raises(TrainerUsageError, match=r"metrics\.jsonl: rounds is .*, expected 1 to 32"):
            rounds_of_steps([1, wrong], 2)
