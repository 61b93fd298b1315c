"""Frames over ranks: an even split, every frame decoded once, and the same embeddings as one process makes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mrsp_engine.distributed.collectives import sum_gradients
from mrsp_engine.distributed.process_groups import create_sequence_group
from mrsp_engine.embeddings import EmbeddingStore, StoreLimits
from mrsp_engine.encoding.parallel import PlannedMedium, UnusableMedium, divide_groups, encode_live, encode_media
from mrsp_engine.errors import UnreadableMediumError
from mrsp_engine.families import load_policy
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks


class BrokenVideo(NoiseVideo):
    """Its frames from 8 on can't be read."""

    def read(self, indices: Any) -> Any:
        if max(indices) >= 8:
            raise RuntimeError("frame 8 is damaged")
        return super().read(indices)


def media_of(policy: Any) -> tuple[list[PlannedMedium], list[NoiseVideo]]:
    """Two videos of different sizes, one of them twice, an image, and a video of a single group."""
    videos = [
        NoiseVideo(seed=0, frame_count=30),
        NoiseVideo(seed=1, frame_count=9, height=140, width=84),
        NoiseVideo(seed=2, frame_count=1),
        NoiseVideo(seed=3, frame_count=2),
    ]
    encoder = policy.encoder
    plans = [encoder.plan(video, range(video.frame_count)) for video in (videos[0], videos[1], videos[3])]
    media = [
        PlannedMedium(video=video, plan=plan)
        for video, plan in zip((videos[0], videos[1], videos[3]), plans, strict=True)
    ]
    media.append(PlannedMedium(video=videos[2], plan=encoder.plan_image(videos[2])))
    return [*media, PlannedMedium(video=videos[0], plan=plans[0])], videos


def weigh(rows: torch.Tensor) -> torch.Tensor:
    """A loss per row that is different for every row."""
    return (rows.square() * torch.linspace(1, 2, rows.numel(), dtype=rows.dtype).view_as(rows)).sum(1)


def encode_on_ranks(model_folder: str, folder: str) -> dict[str, Any]:
    """What a rank sees; everything that needs a process group, in one start of the processes."""
    group = create_sequence_group(dist.get_world_size())
    store = EmbeddingStore(Path(folder))
    policy: Any = load_policy(Path(model_folder), dtype=torch.float64, store=store)
    policy.freeze_vision()
    media, videos = media_of(policy)
    references = encode_media(policy.encoder, media, store, group)
    num_read = sum(video.num_read for video in videos)
    again = encode_media(policy.encoder, media, store, group)
    read_again = sum(video.num_read for video in videos) - num_read

    broken = BrokenVideo(seed=9, frame_count=12)
    with_broken = encode_media(
        policy.encoder,
        [PlannedMedium(video=broken, plan=policy.encoder.plan(broken, range(12))), media[0]],
        store,
        group,
    )

    without_disk = EmbeddingStore(Path(folder) / "none", StoreLimits(disk_bytes=0))
    encode_media(policy.encoder, media, without_disk, group)
    held = [without_disk.get(medium.plan.key) for medium in media]
    before = sum(video.num_read for video in videos)
    encode_media(policy.encoder, media, without_disk, group)
    read_with_memory = sum(video.num_read for video in videos) - before

    policy.encoder.parts.requires_grad_(True)
    live = encode_live(policy.encoder, media, group)
    for rows in live.values():  # each rank's loss uses its share of the rows, as in a row split over ranks
        bounds = [len(rows) * rank // group.size for rank in range(group.size + 1)]
        weigh(rows)[bounds[group.rank] : bounds[group.rank + 1]].sum().backward(retain_graph=True)
    sum_gradients(policy.encoder.parts, group)
    return {
        "keys": [reference.key for reference in references],
        "is_same_again": again == references,
        "num_read": num_read,
        "read_again": read_again,
        "broken": [isinstance(outcome, UnusableMedium) and outcome.message for outcome in with_broken],
        "encodes": store.counters.encodes,
        "left_over": [path.name for path in Path(folder).glob("??/*") if path.suffix != ".safetensors"],
        "held": held,
        "read_with_memory": read_with_memory,
        "live": [live[medium.plan.key.digest].detach() for medium in media],
        "gradients": {name: p.grad for name, p in policy.encoder.parts.named_parameters() if group.rank == 0},
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_work_and_agree_with_one_process(tiny_folder: Path, tmp_path: Path, num_ranks: int) -> None:
    store = EmbeddingStore(tmp_path / "alone")
    policy: Any = load_policy(tiny_folder, dtype=torch.float64, store=store)
    policy.freeze_vision()
    media, _ = media_of(policy)
    alone = [reference.key for reference in encode_media(policy.encoder, media, store) if hasattr(reference, "key")]
    expected = [store.get(key) for key in alone]

    ranks = run_on_ranks(encode_on_ranks, num_ranks, str(tiny_folder), str(tmp_path / "shared"))
    shared = EmbeddingStore(tmp_path / "shared")
    for seen in ranks:
        assert seen["keys"] == alone
        assert seen["is_same_again"]
        assert seen["broken"] == ["frame 8 is damaged", False]
        assert seen["encodes"] == 4  # distinct media
        assert seen["left_over"] == []
        assert (seen["read_again"], seen["read_with_memory"]) == (0, 0)
        for found in (seen["held"], seen["live"], [shared.get(key) for key in alone]):
            for rows, right in zip(found, expected, strict=True):
                torch.testing.assert_close(rows, right, atol=1e-12, rtol=1e-9)
    # Every frame is decoded once, and not all of them by one rank.
    assert sum(seen["num_read"] for seen in ranks) == 30 + 9 + 2 + 1
    assert max(seen["num_read"] for seen in ranks) <= 42 / num_ranks + 5

    policy.encoder.parts.requires_grad_(True)
    for rows in encode_live(policy.encoder, media).values():
        weigh(rows).sum().backward()
    for name, parameter in policy.encoder.parts.named_parameters():
        assert parameter.grad is not None
        difference = (ranks[0]["gradients"][name] - parameter.grad).norm()
        assert difference <= 1e-9 * max(float(parameter.grad.norm()), 1e-3), name


@given(media=st.lists(st.tuples(st.integers(1, 200), st.floats(0.1, 1e15)), max_size=6), num_ranks=st.integers(1, 9))
def test_every_group_has_one_rank_and_ranks_have_even_shares(media: list[tuple[int, float]], num_ranks: int) -> None:
    all_bounds = divide_groups(media, num_ranks)
    assert len(all_bounds) == len(media)
    loads = [0.0] * num_ranks
    for (num_groups, cost), bounds in zip(media, all_bounds, strict=True):
        assert bounds == sorted(bounds)
        assert (len(bounds), bounds[0], bounds[-1]) == (num_ranks + 1, 0, num_groups)
        for rank in range(num_ranks):
            loads[rank] += (bounds[rank + 1] - bounds[rank]) * cost
    if media:
        share = sum(num_groups * cost for num_groups, cost in media) / num_ranks
        assert max(loads) <= (share + max(cost for _, cost in media)) * (1 + 1e-9)


@pytest.mark.parametrize(("error", "is_unreadable"), [(UnreadableMediumError, True), (RuntimeError, False)])
def test_a_file_at_fault_is_told_from_a_reader_at_fault(
    tiny_folder: Path, tmp_path: Path, error: type[Exception], is_unreadable: bool
) -> None:
    class Broken(NoiseVideo):
        def read(self, indices: Any) -> Any:
            raise error("frame 0 is damaged")

    policy: Any = load_policy(tiny_folder, store=EmbeddingStore(tmp_path))
    video = Broken(frame_count=4)
    medium = PlannedMedium(video=video, plan=policy.encoder.plan(video, range(4)))
    (outcome,) = encode_media(policy.encoder, [medium], policy.store)
    assert outcome == UnusableMedium(message="frame 0 is damaged", is_unreadable=is_unreadable)


def test_threads_encode_in_turn(tiny_folder: Path, tmp_path: Path) -> None:
    """A family's modules may be changed for a pass, so a pass of another thread must wait for its end."""
    policy: Any = load_policy(tiny_folder, store=EmbeddingStore(tmp_path))
    policy.freeze_vision()
    videos = [NoiseVideo(seed=seed, frame_count=2 + 2 * seed) for seed in range(4)]
    plans = [policy.encoder.plan(video, range(video.frame_count)) for video in videos]

    def encode(number: int) -> Tensor:
        with torch.no_grad():
            return torch.cat(list(policy.encoder.encode_groups(videos[number], plans[number])))

    alone = [encode(number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for number, found in zip([0, 1, 2, 3] * 10, threads.map(encode, [0, 1, 2, 3] * 10), strict=True):
            torch.testing.assert_close(found, alone[number])
    assert policy.encoder.frames_encoded == sum(video.frame_count for video in videos)  # those of this thread


def test_trained_weights_make_another_key(tiny_folder: Path, tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    policy: Any = load_policy(tiny_folder, store=store)
    video = NoiseVideo()
    before = policy.encoder.plan(video, range(4)).key
    assert policy.encoder.plan(video, range(4)).key == before
    with torch.no_grad():
        next(policy.encoder.parts.parameters()).view(-1)[0] += 1e-3
    after = policy.encoder.plan(video, range(4)).key
    assert after.digest != before.digest
    assert after.encoder_fingerprint != before.encoder_fingerprint


def test_lent_rows_reach_the_tower_from_every_response(tiny_folder: Path, tmp_path: Path) -> None:
    """A step that trains vision: one encoding, used by every pass, and the gradient of all of them."""
    store = EmbeddingStore(tmp_path)
    policy: Any = load_policy(tiny_folder, dtype=torch.float64, store=store)
    video = NoiseVideo(frame_count=6)
    medium = PlannedMedium(video=video, plan=policy.encoder.plan(video, range(6)))
    prompt = policy.build_prompt("Which shape left first?", [medium.plan.reference])
    with store.lend(encode_live(policy.encoder, [medium])):
        policy.hidden_states(policy.embed(prompt), prompt.positions).square().mean().backward()
    assert all(parameter.grad is not None for parameter in policy.encoder.parts.parameters())
    assert any(float(parameter.grad.norm()) > 0 for parameter in policy.encoder.parts.parameters())
    assert store.stats().entries == 0
    assert video.num_read == 6


def test_a_rank_that_owns_no_lent_row_takes_part_in_their_backward(tiny_folder: Path, tmp_path: Path) -> None:
    """All ranks wait for rows gathered with gradients, so every rank's backward pass must visit them."""
    policy: Any = load_policy(tiny_folder, dtype=torch.float64, store=EmbeddingStore(tmp_path))
    plan = policy.encoder.plan(NoiseVideo(frame_count=6), range(6))
    prompt = policy.build_prompt("Which shape left first?", [plan.reference])
    live = torch.randn(plan.reference.num_tokens, policy.decoder.config.hidden_size, dtype=torch.float64)
    live.requires_grad_()
    with policy.store.lend({plan.reference.key: live}):
        rows = policy.embed_rows(prompt, torch.arange(3))
    rows.sum().backward()
    assert live.grad is not None
    assert not live.grad.any()
