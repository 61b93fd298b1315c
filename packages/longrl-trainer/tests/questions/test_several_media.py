"""Questions about several videos and images: shown in order, each file encoded once, none substituted."""

from collections import Counter

import pytest
from PIL import Image

from longrl_trainer.evaluation.evaluate import evaluate
from longrl_trainer.grpo import train_grpo
from longrl_trainer.questions.candidates import Candidates, TextRules
from longrl_trainer.questions.loading import load_questions
from longrl_trainer.questions.order import Cursor
from longrl_trainer.questions.question import build_question_prompt
from longrl_trainer.runs.journal import read_json_lines
from longrl_trainer.runs.progress import SilentProgress
from longrl_trainer.sft import order_rows, pack_questions, train_sft
from longrl_trainer.training.opening import open_policy
from longvideo_reason_data.media.image_file import ImageFile
from longvideo_reason_data.media.video_file import VideoFile, digest_file, sample_frames
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from longvideo_reason_data.records.record import Split, list_media, write_records
from mrsp_engine.embeddings.store import EmbeddingStore


def load(world, tmp_path, **options):
    config = world.sft(tmp_path / "unused")
    policy = open_policy(config.model, "float32")
    return policy, load_questions(config.data, policy, progress=SilentProgress(), **options)


def test_media_are_shown_in_the_records_order_and_each_file_is_encoded_once(new_album, tmp_path):
    world = new_album(splits=[Split.TRAIN_SFT])
    policy, loaded = load(world, tmp_path)
    assert loaded.dropped == ()
    assert [question.record for question in loaded.kept] == list(world.records)
    assert EmbeddingStore(world.folder / "embeddings").counters.encodes == len(list_media(world.records)) == 6
    for question in loaded.kept:
        alone = []
        for medium in question.record.media:
            path = world.dataset / medium.path
            if medium.kind is MediumKind.IMAGE:
                alone.append(policy.encode_image(ImageFile.open(path)))
            else:
                video = VideoFile.open(path)
                alone.append(policy.encode_video(video, sample_frames(video, num_frames=4)))
        assert question.media == tuple(alone)
        prompt = build_question_prompt(policy, question, None)
        assert prompt.media == question.media
        tokens = Counter(prompt.token_ids)
        for kind in MediumKind:
            placeholder = policy.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
            assert tokens[placeholder] == sum(medium.kind is kind for medium in question.record.media)
    assert EmbeddingStore(world.folder / "embeddings").counters.encodes == 6


def test_one_unusable_medium_drops_its_questions_and_names_the_file(new_album, tmp_path):
    world = new_album(splits=[Split.TRAIN_SFT])
    missing, exchanged = (world.dataset / name for name in ("images/train_sft-blue.png", "videos/train_sft-white.mp4"))
    missing.unlink()
    exchanged.write_bytes((world.dataset / "videos/train_sft-red.mp4").read_bytes())
    damaged = world.dataset / "images/train_sft-green.png"
    damaged.write_bytes(b"no picture")
    _, loaded = load(world, tmp_path)
    counts = loaded.counts()
    assert counts["input"] == counts["kept"] + sum(counts["dropped"].values()) == 10
    assert [question.record.question_id for question in loaded.kept] == ["train_sft-0", "train_sft-1"]
    details = {item.question_id: (item.reason, item.detail) for item in loaded.dropped}
    for number, reason, name in (
        (2, "unreadable_video", missing.name),  # next to an intact video
        (4, "unreadable_video", missing.name),  # of several unusable ones the first is reported
        (6, "unreadable_video", damaged.name),
        (8, "digest_mismatch", exchanged.name),
    ):
        assert details[f"train_sft-{number}"][0] == reason
        assert name in details[f"train_sft-{number}"][1]


def test_a_picture_that_the_model_cannot_take_drops_its_questions_only(new_album, tmp_path):
    world = new_album(splits=[Split.TRAIN_SFT])
    path = world.dataset / "images" / "strip.png"
    Image.new("RGB", (3000, 2), "red").save(path)
    strip = RecordMedium(kind=MediumKind.IMAGE, path="images/strip.png", digest=digest_file(path))
    first = world.records[0]
    changed = first.model_copy(update={"media": (first.media[0], strip)})
    write_records(world.dataset / "records.parquet", [changed, *world.records[1:]])
    _, loaded = load(world, tmp_path)
    assert loaded.counts() == {"input": 10, "kept": 9, "dropped": {"unfit_medium": 1}}
    assert "images/strip.png" in loaded.dropped[0].detail


def test_a_picture_that_is_called_a_video_is_dropped_and_the_other_way_round(new_album, tmp_path):
    world = new_album(splits=[Split.TRAIN_SFT])
    film, picture = world.records[2].media
    called_film = picture.model_copy(update={"kind": MediumKind.VIDEO, "duration_seconds": 1.0})
    called_picture = film.model_copy(update={"kind": MediumKind.IMAGE, "duration_seconds": None})
    changed = [
        record.model_copy(update={"media": (film, wrong)})
        for record, wrong in zip(world.records[:2], (called_film, called_picture), strict=True)
    ]
    write_records(world.dataset / "records.parquet", [*changed, *world.records[2:]])
    _, loaded = load(world, tmp_path)
    assert loaded.counts()["dropped"] == {"unreadable_video": 2}
    for item, name in zip(loaded.dropped, ("blue.png", "red.mp4"), strict=True):
        assert name in item.detail


def test_a_row_holds_the_questions_that_are_shown_the_same_in_the_same_order(new_album, tmp_path):
    world = new_album(splits=[Split.TRAIN_SFT])
    first = world.records[0]
    turned = first.model_copy(update={"question_id": "turned", "media": first.media[::-1]})
    write_records(world.dataset / "records.parquet", [*world.records, turned])
    policy, loaded = load(world, tmp_path)
    config = world.sft(tmp_path / "run", questions_per_row=8, rows_per_step=100)
    with Candidates(config.data, TextRules.of(policy, learn_responses=True)) as candidates:
        items = order_rows(candidates, config).select(Cursor(), lambda _: False).items
    rows = [[loaded.kept[place] for place in item] for item in items]
    assert sorted(len(row) for row in rows) == [1, 2, 2, 2, 2, 2]
    for row in rows:
        assert len({question.record.digests for question in row}) == 1
        packed = pack_questions(policy, row, config)
        for question, branch in zip(row, packed.branches, strict=True):
            whole = build_question_prompt(policy, question, None)
            assert packed.prompt.expanded_ids + branch.token_ids[: branch.scored_from] == whole.expanded_ids


@pytest.mark.slow
@pytest.mark.parametrize("train_vision", ["frozen", "projector", "all"])
def test_sft_and_grpo_learn_from_several_media(album, tmp_path, train_vision):
    learned = train_sft(album.sft(tmp_path / "sft", train_vision=train_vision))
    assert learned.questions == {"input": 10, "kept": 10, "dropped": {}}
    config = album.grpo(
        tmp_path / "grpo", model__folder=learned.model_folder, train_vision=train_vision, prompts_per_step=5, steps=2
    )
    result = train_grpo(config)
    assert result.logprob_gap_mean_abs <= 1e-5
    groups = read_json_lines(config.output / "rollouts.jsonl")
    assert {len(group["media"]) for group in groups} <= {2, 3}
    options = {"model__folder": result.model_folder, "allow_seen_videos": True}
    seeing = evaluate(album.evaluation(tmp_path / "seeing.json", **options))
    blind = evaluate(album.evaluation(tmp_path / "blind.json", blind=True, **options))
    assert seeing.count == blind.count == 10
    assert {item.question_id: item.media for item in seeing.items} == {
        record.question_id: tuple(medium.path for medium in record.media)
        for record in album.records
        if record.split is Split.HELD_OUT
    }


def test_the_standard_error_knows_that_questions_share_a_medium(album, tmp_path):
    """Videos and images of the album connect all questions, including those about the same video twice."""
    result = evaluate(album.evaluation(tmp_path / "evaluation.json", allow_seen_videos=True))
    rights = [item.correct for item in result.items]
    assert 0 <= result.accuracy <= 1
    # All questions are connected, so their deviations add up to nothing.
    assert result.accuracy_standard_error == pytest.approx(0.0, abs=1e-12)
    assert len(rights) == 10
