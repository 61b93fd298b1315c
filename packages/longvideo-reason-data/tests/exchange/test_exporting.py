"""Exports can be loaded by the programs they are for, and reading them back gives the same dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longvideo_reason_data.cli import main
from longvideo_reason_data.errors import DataError, UsageError
from longvideo_reason_data.exchange.export_layouts import LAYOUTS
from longvideo_reason_data.exchange.exporting import export_dataset, read_export
from longvideo_reason_data.inspection.check import check_dataset
from longvideo_reason_data.media.video_file import digest_file
from longvideo_reason_data.records.answers import format_prompt, parse_response
from longvideo_reason_data.records.folder import hash_records
from longvideo_reason_data.records.medium import RecordMedium
from longvideo_reason_data.records.record import Interval, QuestionRecord, Skill, Split, read_records, write_records

MakeVideo = Callable[..., Path]

every_layout = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture
def records(make_video: MakeVideo, tmp_path: Path) -> list[QuestionRecord]:
    """Three splits, one question without options, one without evidence, text that needs escaping."""
    made: list[QuestionRecord] = []
    for number, split in enumerate(Split):
        path = make_video(f"dataset/videos/{split}.mp4", num_frames=50, first_number=number)
        for place in range(3):
            is_open = place == 2
            made.append(
                QuestionRecord(
                    question_id=f"{split}-{place}",
                    media=(RecordMedium(path=f"videos/{path.name}", digest=digest_file(path), duration_seconds=2.0),),
                    split=split,
                    skill=list(Skill)[place],
                    question=f'Wo öffnet "sie" die Tür | <b>Nr.</b> {place}?\nA zweite Zeile',
                    options=() if is_open else ("häufig", "nie", "{einmal}", "```"),
                    answer="am Ende, laut" if is_open else "ABC"[number],
                    evidence=(() if is_open else (Interval(start_seconds=0.1, end_seconds=0.333333 + number / 2),)),
                    reasoning="" if place == 1 and split is not Split.TRAIN_SFT else "From 0.1 to 0.3 seconds …",
                    source=f"archive | {split}",
                    license="CC-BY-4.0" if number else "CC0-1.0",
                )
            )
    write_records(tmp_path / "dataset" / "records.parquet", made)
    return made


def load(folder: Path, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Load an export like its readers do."""
    loaded = datasets.load_dataset(str(folder), cache_dir=str(cache))
    return {str(split): rows.to_list() for split, rows in loaded.items()}


@every_layout
def test_what_is_read_back_is_the_same(tmp_path, records, name):
    output = tmp_path / name
    assert export_dataset(tmp_path / "dataset", output, name) == {str(split): 3 for split in Split}
    assert hash_records(read_export(output, name)) == hash_records(records)
    assert {row.question_id: row for row in read_export(output, name)} == {row.question_id: row for row in records}
    for record in records:
        assert digest_file(output / record.media[0].path) == record.media[0].digest


@every_layout
def test_datasets_loads_it_split_by_split(tmp_path, records, name):
    output = tmp_path / name
    export_dataset(tmp_path / "dataset", output, name)
    loaded = load(output, tmp_path / "cache")
    assert {split: len(rows) for split, rows in loaded.items()} == {str(split): 3 for split in Split}
    for split, rows in loaded.items():
        expected = [record for record in records if record.split == split]
        for number, (row, record) in enumerate(zip(rows, expected, strict=True)):
            assert row == LAYOUTS[name].write_row(record, [record.media[0].path], number)


def test_the_parquet_for_datasets_is_a_dataset_of_this_package(tmp_path, records):
    output = tmp_path / "hf"
    export_dataset(tmp_path / "dataset", output, "hf")
    for split in Split:
        assert read_records(output / "data" / f"{split}.parquet") == [row for row in records if row.split is split]
    write_records(output / "records.parquet", read_export(output, "hf"))
    assert check_dataset(output) == check_dataset(tmp_path / "dataset")


def test_trl_has_conversations_with_the_video_as_a_block(tmp_path, records):
    output = tmp_path / "trl"
    export_dataset(tmp_path / "dataset", output, "trl", video_root="/somewhere/dataset/")
    assert not (output / "videos").exists()
    loaded = load(output, tmp_path / "cache")
    first = records[0]
    row = loaded["train_sft"][0]
    # Chat templates treat a block with additional keys, even empty ones, as another type.
    assert row["prompt"] == [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": f"/somewhere/dataset/{first.media[0].path}"},
                {"type": "text", "text": format_prompt(first.question, first.options)},
            ],
        }
    ]
    response = row["completion"][0]["content"][0]["text"]
    assert parse_response(response, first.options).letter == first.answer
    assert loaded["train_rl"][0]["answer"] == records[3].answer  # for reward functions


def test_verl_has_the_columns_of_its_loader(tmp_path, records):
    output = tmp_path / "verl"
    export_dataset(tmp_path / "dataset", output, "verl", video_root="file:///data")
    row = pq.read_table(output / "data" / "train_rl.parquet").to_pylist()[1]
    record = records[4]
    prompt = "<video>" + format_prompt(record.question, record.options)
    assert {name: row[name] for name in row if name != "extra_info"} == {
        "data_source": "longvideo_reason_data",
        "prompt": [{"role": "user", "content": prompt}],
        "videos": [{"type": "video", "video": f"file:///data/{record.media[0].path}"}],
        "ability": "goal",
        "reward_model": {"style": "rule", "ground_truth": record.answer},
    }
    assert row["extra_info"]["index"] == 1
    assert row["extra_info"]["split"] == "train_rl"


def test_easyr1_has_the_columns_of_its_loader(tmp_path, records):
    output = tmp_path / "easyr1"
    export_dataset(tmp_path / "dataset", output, "easyr1")
    row = pq.read_table(output / "data" / "held_out.parquet").to_pylist()[0]
    record = records[6]
    assert row["problem"] == "<video>" + format_prompt(record.question, record.options)
    assert row["problem"].count("<video>") == len(row["videos"]) == 1
    assert (output / row["videos"][0]).is_file()
    assert row["answer"] == record.answer


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("verl", "ability", "plot"),
        ("verl", "reward_model", {"style": "rule", "ground_truth": "D"}),
        ("verl", "videos", [{"type": "video", "video": "videos/other.mp4"}]),
        ("easyr1", "problem", "<video>What else?"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(tmp_path, records, name, column, value):
    output = tmp_path / name
    export_dataset(tmp_path / "dataset", output, name)
    path = output / "data" / "train_sft.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(DataError, match=r"row 0 \(train_sft-0\): .* differs from its record"):
        read_export(output, name)


@pytest.mark.parametrize("name", ["verl", "easyr1"])
def test_words_that_a_trainer_takes_for_a_place_are_refused(tmp_path, records, name):
    changed = records[0].model_copy(update={"question": "What does the sign <video> say?"})
    write_records(tmp_path / "dataset" / "records.parquet", [changed])
    with pytest.raises(DataError, match=r"train_sft-0: its text contains '<video>'"):
        export_dataset(tmp_path / "dataset", tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_nothing(tmp_path, records):
    (tmp_path / "dataset" / records[-1].media[0].path).unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="is missing"):
        export_dataset(tmp_path / "dataset", tmp_path / "out", "hf")
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_requests_are_told(tmp_path, records, capsys):
    dataset = str(tmp_path / "dataset")
    assert main(["export", dataset, "--to", "jsonl"]) == 0
    assert (tmp_path / "dataset" / "exports" / "jsonl" / "README.md").is_file()
    capsys.readouterr()
    assert main(["export", dataset, "--to", "jsonl"]) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "dataset" / "exports" / "jsonl" / "old").write_text("of the earlier one")
    assert main(["export", dataset, "--to", "jsonl", "--force"]) == 0
    assert not (tmp_path / "dataset" / "exports" / "jsonl" / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("no export")
    capsys.readouterr()
    assert main(["export", dataset, "--to", "jsonl", "--output", str(tmp_path / "mine"), "--force"]) == 2
    assert "isn't an export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter").read_text() == "no export"
    assert main(["export", dataset, "--to", "hf", "--video-root", "elsewhere"]) == 2
    assert "--video-root elsewhere" in capsys.readouterr().err
    with pytest.raises(UsageError, match="expected an export with --to verl"):
        read_export(tmp_path / "dataset" / "exports" / "jsonl", "verl")


@pytest.mark.parametrize("name", ["trl", "verl", "easyr1"])
def test_places_that_hang_on_where_a_trainer_is_started_are_told(tmp_path, records, name, capsys, monkeypatch):
    dataset, output = str(tmp_path / "dataset"), tmp_path / name
    assert main(["export", dataset, "--to", name, "--output", str(output)]) == 0
    assert f"relative to {output}: start the trainer there" in capsys.readouterr().out
    assert main(["export", dataset, "--to", name, "--output", str(tmp_path / "rooted"), "--video-root", dataset]) == 0
    assert "relative to" not in capsys.readouterr().out
    for folder, started in ((output, output), (tmp_path / "rooted", tmp_path)):
        monkeypatch.chdir(started)
        path = folder / "data" / f"train_rl.{LAYOUTS[name].suffix}"
        rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else map(json.loads, path.open())
        by_id = {record.question_id: record for record in records}
        places = [
            place
            for row in rows
            for place in LAYOUTS[name].find_places(row, by_id[LAYOUTS[name].find_record(row)["question_id"]])
        ]
        assert places
        assert all(Path(place).is_file() for place in places)


def test_the_card_says_where_every_video_is_from(tmp_path, records):
    manifest = {
        "models": {"reasoner": "thinker", "captioner": "seer"},
        "stages": {"questions": {"input": 12, "kept": 9, "dropped": {"invalid": 3}}},
    }
    (tmp_path / "dataset" / "manifest.json").write_text(json.dumps(manifest))
    export_dataset(tmp_path / "dataset", tmp_path / "out", "hf")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\npretty_name: "dataset"\nlicense: other\nlicense_name: "CC-BY-4.0; CC0-1.0"\n')
    assert "| temporal | 1 | 1 | 1 | 3 |" in card
    assert "| videos/train_rl.mp4 | archive \\| train_rl | CC-BY-4.0 |" in card
    assert "Models: reasoner `thinker`, captioner `seer`." in card
    assert "| questions | 12 | 9 | invalid 3 |" in card
    assert "9 of 9 questions weren't tried on a model" in card
    assert "3 questions have no evidence interval" in card
    rows = [json.loads(line) for line in (tmp_path / "out" / "videos.jsonl").read_text().splitlines()]
    assert [(row["source"], row["num_questions"]) for row in rows] == [(f"archive | {split}", 3) for split in Split]


def test_a_single_licence_is_the_one_of_the_card(tmp_path, records):
    write_records(tmp_path / "dataset" / "records.parquet", records[:3])
    export_dataset(tmp_path / "dataset", tmp_path / "out", "hf")
    assert '\nlicense: "cc0-1.0"\n' in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert list(load(tmp_path / "out", tmp_path / "cache")) == ["train_sft"]
