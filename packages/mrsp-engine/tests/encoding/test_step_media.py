"""Trained projectors and towers: the gradients of plain transformers, one encoding, names that no other weights have.

The reference computes every response separately, from pixels, with transformers' classes and their own order of
windows, mergers and levels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2ForCausalLM,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessor,
    SiglipVisionModel,
)

from mrsp_engine.distributed.collectives import sum_gradients
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_encoder import FrameEncoder
from mrsp_engine.encoding.parallel import PlannedMedium, encode_media
from mrsp_engine.encoding.step_media import StepMedia, rename_plans
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.vila.projector import VilaProjector
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rows import PackedRow, PromptGroup
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks, use_exact_norms
from mrsp_engine.tiny.families import build_tiny, create_tiny_vila
from mrsp_engine.tiny.qwen2_5_vl import create_tiny_qwen2_5_vl

SEEING = ("qwen2_5_vl", "qwen3_vl", "vila")
QUESTIONS = ("Which shape left first?", "What came after the red circle?")
POOL_FRAMES = 2
PROJECTORS = ("merger.", "deepstack_merger_list.", "mm_projector.")
CONTENTS = {"projector": "features", "all": "frames"}
NUM_RANKS = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for family in ("qwen2_5_vl", "qwen3_vl", "qwen2"):
        build_tiny(family, root / family)
    create_tiny_vila(root / "vila", pool_frames=POOL_FRAMES)
    return root


def load(folder: Path, store: EmbeddingStore) -> tuple[Policy, FrameEncoder]:
    policy = load_policy(folder, dtype=torch.float64, store=store)
    policy.freeze_vision()
    use_exact_norms(policy.model)
    assert policy.encoder is not None
    return policy, policy.encoder


def media_of(encoder: FrameEncoder, family: str) -> list[PlannedMedium]:
    """A video whose frames have several windows and whose last frame has no pair, and an image."""
    video = NoiseVideo(height=168, width=224) if family != "vila" else NoiseVideo()
    image = NoiseVideo(seed=2, frame_count=1, height=120, width=70)
    num_frames = 6 if family == "vila" else 5
    return [
        PlannedMedium(video=video, plan=encoder.plan(video, range(num_frames))),
        PlannedMedium(video=image, plan=encoder.plan_image(image)),
    ]


def branches(seed: int) -> list[Branch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Branch(token_ids=tuple(torch.randint(0, 250, (length,), generator=generator).tolist())) for length in (7, 3)
    ]


def weigh(logprobs: Tensor) -> Tensor:
    """A loss that is different for every token."""
    return (logprobs * torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)).sum()


def gradients_of_a_step(
    policy: Policy, encoder: FrameEncoder, media: Sequence[PlannedMedium], part: Any, group: SequenceGroup | None = None
) -> dict[str, Tensor]:
    """Gradients of one step with two questions about the same media, in separate rows."""
    policy.train_vision(part)
    step = StepMedia(policy, rename_plans(policy, [medium.plan for medium in media]), group)
    with step.lend(with_gradients=True):
        for number, prompt in enumerate(prompts_of(policy, step)):
            weigh(torch.cat(score_branches(policy, prompt, branches(number), sequence_group=group).logprobs)).backward()
    step.backward()
    if group is not None:
        sum_gradients(policy.model, group)
    return {name: parameter.grad for name, parameter in policy.model.named_parameters() if parameter.grad is not None}


def prompts_of(policy: Policy, step: StepMedia) -> list[Prompt]:
    return [policy.build_prompt(question, [plan.reference for plan in step.plans]) for question in QUESTIONS]


def plain_gradients(
    folder: Path, policy: Policy, prompts: Sequence[Prompt], media: Sequence[PlannedMedium]
) -> dict[str, Any]:
    """Gradients of the same loss with plain transformers, every response in its own row."""
    model = load_vila(folder) if policy.name == "vila" else load_qwen(folder, policy.name)
    use_exact_norms(model)
    for number, prompt in enumerate(prompts):
        group_logprobs: list[Tensor] = []
        for branch in branches(number):
            row = PackedRow.of([PromptGroup(prompt=prompt, branches=[branch])], torch.device("cpu"))
            ids = torch.tensor([[*prompt.expanded_ids, *branch.token_ids]])
            logits = model.plain_logits(ids, row.positions, media)
            group_logprobs.append(logits[row.predictors].log_softmax(-1).gather(1, row.targets[:, None])[:, 0])
        weigh(torch.cat(group_logprobs)).backward()
    return {
        name.removeprefix("whole."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


class PlainQwen(nn.Module):
    """A transformers model with pixels as input."""

    def __init__(self, whole: Any, processor: Any) -> None:
        super().__init__()
        self.whole = whole
        self.processor = processor

    def plain_logits(self, ids: Tensor, positions: Tensor, media: Sequence[PlannedMedium]) -> Tensor:
        video, image = media
        frames = torch.from_numpy(video.video.read(video.plan.frame_indices)).permute(0, 3, 1, 2)
        picture = torch.from_numpy(image.video.read([0])[0]).permute(2, 0, 1)
        inputs = self.processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
        pictures = self.processor.image_processor(images=[picture], return_tensors="pt")
        config = self.whole.config
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        output = self.whole(
            input_ids=ids,
            mm_token_type_ids=kinds,
            position_ids=positions[:, None],
            pixel_values_videos=inputs["pixel_values_videos"],
            video_grid_thw=inputs["video_grid_thw"],
            pixel_values=pictures["pixel_values"],
            image_grid_thw=pictures["image_grid_thw"],
        )
        return output.logits[0]


class PlainVila(nn.Module):
    """The parts of a VILA checkpoint, put together by hand."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.llm = Qwen2ForCausalLM.from_pretrained(folder / "llm", dtype=torch.float64)
        self.vision_tower = SiglipVisionModel.from_pretrained(folder / "vision_tower", dtype=torch.float64)
        width, hidden_size = self.vision_tower.config.hidden_size, self.llm.config.hidden_size
        self.mm_projector = VilaProjector("mlp_downsample_2x2_fix", vision_width=width, hidden_size=hidden_size)
        self.mm_projector.load_state_dict(load_file(folder / "mm_projector" / "model.safetensors"))
        self.mm_projector.double()
        self.images = SiglipImageProcessor.from_pretrained(folder / "vision_tower")

    def plain_logits(self, ids: Tensor, positions: Tensor, media: Sequence[PlannedMedium]) -> Tensor:
        rows: list[Tensor] = []
        for medium in media:
            frames = list(torch.from_numpy(medium.video.read(medium.plan.frame_indices)).permute(0, 3, 1, 2))
            pixels = self.images(images=frames, return_tensors="pt")["pixel_values"].double()
            patches = self.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
            of_frames = self.mm_projector(patches.reshape(len(frames), 5, 5, -1))
            if medium.plan.modality == "video":
                of_frames = (of_frames[0::2] + of_frames[1::2]) / POOL_FRAMES
            rows.append(of_frames.flatten(0, 1))
        embeddings = self.llm.get_input_embeddings()(ids)[0]
        is_media = torch.isin(ids[0], torch.tensor(self.placeholders))
        embeddings = embeddings.masked_scatter(is_media[:, None], torch.cat(rows))
        return self.llm(inputs_embeds=embeddings[None], position_ids=positions).logits[0]


def load_qwen(folder: Path, family: str) -> PlainQwen:
    model_class, processor_class = {
        "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
        "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLProcessor),
    }[family]
    whole = model_class.from_pretrained(folder, dtype=torch.float64)
    return PlainQwen(whole, processor_class.from_pretrained(folder))


def load_vila(folder: Path) -> PlainVila:
    model = PlainVila(folder)
    tokenizer: Any = load_policy(folder, store=EmbeddingStore(folder.parent / "unused")).tokenizer
    model.placeholders = tokenizer.convert_tokens_to_ids(["<vila/video>", "<image>"])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_gradients_are_those_of_plain_transformers(family: str, folders: Path, tmp_path: Path) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for part, content in CONTENTS.items():
        policy, encoder = load(folders / family, EmbeddingStore(tmp_path))
        encoder.content = content
        media = media_of(encoder, family)
        encode_media(encoder, media, policy.store)
        found[part] = gradients_of_a_step(policy, encoder, media, part)
    with torch.no_grad():
        prompts = prompts_of(policy, StepMedia(policy, rename_plans(policy, [medium.plan for medium in media])))
    expected = plain_gradients(folders / family, policy, prompts, media)
    assert found["all"].keys() == expected.keys()
    is_projector = {name: any(part in name for part in PROJECTORS) for name in expected}
    is_tower = {name: "vis" in name and not is_projector[name] for name in expected}
    assert sum(is_projector.values()) >= 4
    assert sum(is_tower.values()) >= 10
    assert found["projector"].keys() == {name for name in expected if not is_tower[name]}
    of_vision = [gradient for name, gradient in expected.items() if is_projector[name] or is_tower[name]]
    norm = float(torch.stack([gradient.norm() for gradient in of_vision]).norm())
    assert norm > 1
    for gradients in found.values():
        for name, gradient in gradients.items():  # transformers' rotary code in the tower rounds gradients to float32
            assert (gradient - expected[name]).norm() <= 1e-9 * norm, name


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
@pytest.mark.parametrize("content", ["features", "frames"])
def test_what_is_made_in_a_step_is_what_would_have_been_stored(
    family: str, content: Any, folders: Path, tmp_path: Path
) -> None:
    """Equal to the bit; every frame is decoded once, and goes through the tower once or once per step."""
    policy, encoder = load(folders / family, EmbeddingStore(tmp_path))
    stored = encode_media(encoder, media_of(encoder, family), policy.store)
    encoder.content = content
    media = media_of(encoder, family)
    num_frames = sum(len(medium.plan.frame_indices) for medium in media)
    before = encoder.frames_encoded
    assert encode_media(encoder, media, policy.store) == stored  # the same names of the same embeddings
    assert encoder.frames_encoded - before == (num_frames if content == "features" else 0)
    assert policy.store.counters.encodes == 2 * len(media)
    before = encoder.frames_encoded
    for step in (1, 2):
        made = StepMedia(policy, [medium.plan for medium in media])
        expected = [policy.store.get(reference.key) for reference in stored]
        with made.lend():
            for reference, rows in zip(stored, expected, strict=True):
                assert torch.equal(policy.store.get(reference.key), rows)
                assert not policy.store.get(reference.key).requires_grad
        assert encoder.frames_encoded - before == (0 if content == "features" else step * num_frames)
    assert sum(medium.video.num_read for medium in media) == num_frames


def gradients_on_a_rank(folder: str, store: str) -> dict[str, dict[str, Tensor]]:
    """Gradients of both modes; everything in one start of the processes."""
    assert dist.group.WORLD is not None
    group = SequenceGroup.of(dist.group.WORLD)
    found: dict[str, dict[str, Tensor]] = {}
    for part, content in CONTENTS.items():
        policy, encoder = load(Path(folder), EmbeddingStore(Path(store)))
        encoder.content = content
        media = media_of(encoder, policy.name)
        encode_media(encoder, media, policy.store, group)
        found[part] = gradients_of_a_step(policy, encoder, media, part, group)
    return found if group.rank == 0 else {}


@pytest.mark.slow
def test_ranks_have_the_gradients_of_one_process(folders: Path, tmp_path: Path) -> None:
    folder = folders / "qwen3_vl"
    on_ranks = run_on_ranks(gradients_on_a_rank, NUM_RANKS, str(folder), str(tmp_path / "shared"))[0]
    for part, content in CONTENTS.items():
        policy, encoder = load(folder, EmbeddingStore(tmp_path / "alone"))
        encoder.content = content
        media = media_of(encoder, policy.name)
        encode_media(encoder, media, policy.store)
        expected = gradients_of_a_step(policy, encoder, media, part)
        assert on_ranks[part].keys() == expected.keys()
        norm = max(float(gradient.norm()) for gradient in expected.values())
        for name, gradient in expected.items():
            assert (on_ranks[part][name] - gradient).norm() <= 1e-9 * norm, name


def test_another_policy_lends_its_own_embeddings_under_the_same_names(folders: Path, tmp_path: Path) -> None:
    """Like the reference, whose vision isn't trained."""
    policy, encoder = load(folders / "qwen3_vl", EmbeddingStore(tmp_path))
    reference, frozen = load(folders / "qwen3_vl", EmbeddingStore(tmp_path))
    (own, _) = encode_media(frozen, media_of(frozen, reference.name), reference.store)
    encoder.content = "features"
    (medium, _) = media_of(encoder, policy.name)
    encode_media(encoder, [medium], policy.store)
    policy.train_vision("projector")
    with torch.no_grad():
        for name, parameter in encoder.parts.named_parameters():
            if parameter.requires_grad and "deepstack" in name:
                parameter.add_(0.1)
    plans = rename_plans(policy, [medium.plan])
    name = plans[0].reference.key
    with StepMedia(policy, plans).lend(), StepMedia(reference, plans).lend():
        of_policy, of_reference = policy.store.get(name), reference.store.get(name)
    assert torch.equal(of_reference, reference.store.get(own.key))
    width = of_policy.shape[1] // 3
    assert torch.equal(of_policy[:, :width], of_reference[:, :width])
    assert all((of_policy != of_reference)[:, width:].any(0))
    assert policy.store.get(name) is None  # released after the block


@pytest.mark.parametrize("family", SEEING)
def test_names_change_with_the_weights_they_depend_on(family: str, folders: Path, tmp_path: Path) -> None:
    policy, encoder = load(folders / family, EmbeddingStore(tmp_path))
    policy.train_vision("all")
    names: dict[str, list[set[str]]] = {"embeddings": [], "features": [], "frames": []}

    def note() -> None:
        for content in names:
            encoder.content = content
            (medium, _) = media_of(encoder, family)
            names[content].append({medium.plan.key.digest})
            assert medium.plan.reference.key == medium.plan.embedding_key.digest
            (renamed,) = rename_plans(policy, [medium.plan])
            assert renamed == medium.plan

    note()
    for is_projector in (True, False):
        for name, parameter in encoder.parts.named_parameters():
            if name.startswith(PROJECTORS) == is_projector:
                with torch.no_grad():
                    parameter.view(-1)[0] += 1e-3
                break
        note()
    num_distinct = {content: len(set.union(*seen)) for content, seen in names.items()}
    assert num_distinct == {"embeddings": 3, "features": 2, "frames": 1}
    assert names["features"][0] == names["features"][1]
    assert len(set.union(*(seen[0] for seen in names.values()))) == 3


@pytest.mark.slow
def test_the_smaller_of_frames_and_embeddings_is_kept(tmp_path: Path) -> None:
    """Two frames for a row are 28 × 28 × 2 × 3 = 4704 bytes, a row 768 numbers."""
    create_tiny_qwen2_5_vl(tmp_path / "model", corpus=QUESTIONS, hidden_size=768, num_layers=1, intermediate_size=64)
    video = NoiseVideo()
    for dtype, content in ((torch.float32, "embeddings"), (torch.float64, "frames")):
        policy = load_policy(tmp_path / "model", dtype=dtype, store=EmbeddingStore(tmp_path / "store"))
        encoder = policy.encoder
        assert encoder is not None
        encoder.content = "smaller"
        plan = encoder.plan(video, range(4))
        assert plan.key.content == content
        encode_media(encoder, [PlannedMedium(video=video, plan=plan)], policy.store)
        entry = policy.store.get(plan.key)
        assert entry is not None
        assert entry.nbytes <= plan.layout.num_tokens * 4704


@pytest.mark.slow
def test_what_was_lost_or_damaged_is_told_in_one_line(folders: Path, tmp_path: Path) -> None:
    policy, encoder = load(folders / "qwen2_5_vl", EmbeddingStore(tmp_path))
    encoder.content = "features"
    media = media_of(encoder, policy.name)
    encode_media(encoder, media, policy.store)
    path = policy.store.path(media[0].plan.key)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    store = EmbeddingStore(tmp_path)
    policy = load_policy(folders / "qwen2_5_vl", dtype=torch.float64, store=store)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^features .{12}… of a video are not in the store .*; give the store"):
            StepMedia(policy, [medium.plan for medium in media])
    assert store.counters.damaged == 1
    assert policy.encoder is not None
    encode_media(policy.encoder, media, store)  # made again
    assert StepMedia(policy, [medium.plan for medium in media]).plans


def test_parts_that_a_model_lacks_are_refused(folders: Path, tmp_path: Path) -> None:
    blind = load_policy(folders / "qwen2", store=EmbeddingStore(tmp_path))
    with pytest.raises(EngineUsageError, match=r'train_vision="all": a model of type qwen2 has no vision'):
        blind.train_vision("all")
    policy, encoder = load(folders / "vila", EmbeddingStore(tmp_path))
    encoder._projector = ()  # as for a family without a projector of its own
    with pytest.raises(EngineUsageError, match=r'train_vision="projector": the projector of .* vila is not separate'):
        policy.train_vision("projector")
