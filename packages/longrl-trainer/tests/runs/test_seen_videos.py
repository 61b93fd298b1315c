"""A model that was trained on a video isn't measured on it as on an unseen one, unless somebody says so."""

import json

import pytest

from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.sft import train_sft
from longvideo_reason_data.records.record import Split, write_records


def test_a_video_seen_in_any_run_before_is_refused_when_it_comes_to_be_held_out(world, tmp_path):
    first = train_sft(world.sft(tmp_path / "sft", epochs=1))
    second = train_grpo(world.grpo(tmp_path / "grpo", model__folder=first.model_folder, steps=1))
    seen = json.loads((tmp_path / "grpo" / "seen_videos.json").read_text())["videos"]
    splits = {digest: record.split for record in world.records for digest in record.digests}
    assert {splits[digest] for digest in seen} == {Split.TRAIN_SFT, Split.TRAIN_RL}
    trained = {"model__folder": second.model_folder, "max_response_tokens": 4, "limit": 2}
    evaluate(world.evaluation(tmp_path / "a.json", **trained))  # nothing held out was seen

    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "videos").symlink_to(world.dataset / "videos")
    leak = next(record for record in world.records if record.split is Split.TRAIN_SFT)
    kept = [record for record in world.records if record.split is Split.HELD_OUT]
    write_records(moved / "records.parquet", [leak.model_copy(update={"split": Split.HELD_OUT}), *kept])
    places = {"data__dataset": moved, "data__follow_links": True}
    config = world.evaluation(tmp_path / "b.json", **trained, **places)
    with pytest.raises(TrainerUsageError, match="was seen in the training") as refused:
        evaluate(config)
    assert leak.media[0].path in str(refused.value)
    assert "allow_seen_videos" in str(refused.value)
    evaluate(config.model_copy(update={"allow_seen_videos": True}))
    untrained = world.evaluation(tmp_path / "c.json", max_response_tokens=4, limit=2, **places)
    assert evaluate(untrained).count == 2
