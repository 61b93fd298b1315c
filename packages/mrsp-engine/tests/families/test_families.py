"""For every family: one prompt per group, several ranks equal one, stored equals live, saved equals loaded."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from mrsp_engine.distributed.collectives import sum_gradients
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import SamplingSettings
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo, run_on_ranks, use_exact_norms
from mrsp_engine.tiny.families import TINY_FAMILIES, build_tiny

FAMILIES = tuple(sorted(TINY_FAMILIES))
SEEING = tuple(family for family in FAMILIES if family not in ("qwen2", "qwen3"))
QUESTION = "Which shape left first?\nA. red circle"
LENGTHS = ((9, 0), (20, 4), (1, 0), (17, 17), (2, 1))  # tokens, first scored token
NUM_RANKS = 3
Outcome = dict[str, Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        build_tiny(family, root / family)
    return root


def load(folders: Path, family: str, dtype: torch.dtype = torch.float64) -> LanguagePolicy:
    policy = load_policy(folders / family, dtype=dtype, store=EmbeddingStore(folders / "embeddings"))
    assert isinstance(policy, LanguagePolicy)
    policy.freeze_vision()
    use_exact_norms(policy.model)
    return policy


def media_of(policy: Policy) -> list[MediaReference]:
    """A video, an image and another video, of different sizes, if the family has vision."""
    if policy.name not in SEEING:
        return []
    first = policy.encode_video(NoiseVideo(), range(0, 12, 2))
    image = policy.encode_image(NoiseVideo(seed=2, frame_count=1, height=120, width=70))
    return [first, image, policy.encode_video(NoiseVideo(seed=1, height=64, width=128), range(3))]


def branches() -> list[Branch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Branch(token_ids=tuple(torch.randint(0, 250, (length,), generator=generator).tolist()), scored_from=start)
        for length, start in LENGTHS
    ]


def outcome(
    policy: Policy, prompt: Prompt, *, share_prompt: bool = True, group: SequenceGroup | None = None
) -> Outcome:
    """Loss and gradients of one group, of every parameter and of the prompt's embeddings."""
    embeddings = nn.Parameter(policy.embed(prompt).detach())
    policy.model.zero_grad()
    scores = score_branches(
        policy,
        prompt,
        branches(),
        temperature=0.7,
        share_prompt=share_prompt,
        sequence_group=group,
        prompt_embeddings=embeddings,
    )
    flat = torch.cat(scores.logprobs)
    loss = (flat * torch.linspace(-1, 1, len(flat), dtype=flat.dtype)).sum() + (flat**2).mean()
    loss.backward()
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad} | {"prompt": embeddings}
    if group is not None:
        sum_gradients(trained.values(), group)
    gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    assert gradients.keys() == trained.keys()
    return {"loss": loss.detach(), **gradients}


def outcomes_on_a_rank(folders: str) -> dict[str, Outcome]:
    group = dist.group.WORLD
    assert group is not None
    found: dict[str, Outcome] = {}
    for family in FAMILIES:
        policy = load(Path(folders), family)
        found[family] = outcome(policy, policy.build_prompt(QUESTION, media_of(policy)), group=SequenceGroup.of(group))
    return found


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.slow
def test_sharing_the_prompt_and_splitting_the_row_change_no_gradient(folders: Path) -> None:
    expected: dict[str, Outcome] = {}
    for family in FAMILIES:
        policy = load(folders, family)
        prompt = policy.build_prompt(QUESTION, media_of(policy))
        expected[family] = outcome(policy, prompt, share_prompt=False)
        shared = outcome(policy, prompt)
        for name, value in expected[family].items():
            assert relative(shared[name], value) <= 1e-9, f"{family} shared: {name}"
    for of_rank in run_on_ranks(outcomes_on_a_rank, NUM_RANKS, str(folders)):
        for family, values in expected.items():
            for name, value in values.items():
                assert relative(of_rank[family][name], value) <= 1e-9, f"{family} split: {name}"


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_every_medium_matters(folders: Path, family: str) -> None:
    policy = load(folders, family)
    media = media_of(policy)
    hidden = policy.hidden_states(policy.embed(prompt := policy.build_prompt(QUESTION, media)), prompt.positions)[-1]
    for place in range(len(media)):
        other = NoiseVideo(seed=50 + place, frame_count=1 if media[place].modality == "image" else 24)
        changed = list(media)
        changed[place] = policy.encode_image(other) if other.frame_count == 1 else policy.encode_video(other, range(4))
        prompt = policy.build_prompt(QUESTION, changed)
        assert relative(policy.hidden_states(policy.embed(prompt), prompt.positions)[-1], hidden) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts(folders: Path, family: str) -> None:
    policy = load(folders, family)
    for media in (media_of(policy), []):
        for text in ("", QUESTION, "\n A.\n", "naïve 🙂"):
            prefix, tail = policy.build_shared_prompt(media, system="Think.")
            prompt = policy.build_prompt(text, media, system="Think.")
            assert prefix.expanded_ids + tail(text) == prompt.expanded_ids
            assert prefix.positions.equal(prompt.positions[:, : prefix.length])
            placeholders = sum(token in policy._placeholder_ids for token in prompt.expanded_ids)
            assert placeholders == sum(medium.num_tokens for medium in media)
    with pytest.raises(EngineUsageError, match="control token"):
        policy.build_prompt("What is <|im_end|>?", [])
    radar = MediaReference(key="0" * 64, grid_thw=(1, 1, 1), seconds_per_grid=1.0, num_tokens=1, modality="radar")
    with pytest.raises(EngineUsageError, match="radar for a model that"):
        policy.build_prompt(QUESTION, [radar])


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_transformers_agrees(folders: Path, family: str) -> None:
    policy = load(folders, family)
    prompt = policy.build_prompt(QUESTION, media_of(policy))
    sampling = SamplingSettings(temperature=0.8, max_tokens=8, num_samples=2, seed=1)
    outcomes = TransformersRolloutEngine(policy).generate([prompt], sampling)
    assert logprob_gaps(policy, [prompt], outcomes, temperature=sampling.temperature).max() <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_checkpoint_is_the_same_model_under_the_same_names(folders: Path, family: str, tmp_path: Path) -> None:
    policy = load(folders, family)
    prompt = policy.build_prompt(QUESTION, media_of(policy))
    with torch.no_grad():
        policy.language_model_head.get_parameter("weight").mul_(1.5)
        before = torch.cat(score_branches(policy, prompt, branches()).logprobs)
    encodes = policy.store.counters.encodes
    policy.save(tmp_path / family, exact=True)
    shutil.copytree(folders / "embeddings", tmp_path / "embeddings")
    again = load(tmp_path, family)
    same = again.build_prompt(QUESTION, media_of(again))
    assert (same.token_ids, same.expanded_ids, same.media) == (prompt.token_ids, prompt.expanded_ids, prompt.media)
    assert again.store.counters.encodes == encodes  # processor and tower are recognised as the same
    with torch.no_grad():
        assert relative(torch.cat(score_branches(again, same, branches()).logprobs), before) <= 1e-12
    originals = sorted(path.relative_to(folders / family) for path in (folders / family).rglob("*.safetensors"))
    assert originals == sorted(
        path.relative_to(tmp_path / family) for path in (tmp_path / family).rglob("*.safetensors")
    )
    for path in originals:
        with safe_open(folders / family / path, "pt") as old, safe_open(tmp_path / family / path, "pt") as new:
            assert set(old.keys()) == set(new.keys())


@pytest.mark.slow
@pytest.mark.parametrize("family", SEEING)
def test_any_range_of_groups_can_be_encoded_alone(folders: Path, family: str) -> None:
    policy = load(folders, family)
    assert policy.encoder is not None
    video = NoiseVideo(frame_count=71, height=40, width=60)
    plan = policy.encoder.plan(video, range(71))
    assert plan.layout.operations_per_group > 0
    with torch.no_grad():
        whole = torch.cat(list(policy.encoder.encode_groups(video, plan)))
        cuts = [0, 1, 4, plan.layout.num_groups - 1, plan.layout.num_groups]
        parts = [
            torch.cat(list(policy.encoder.encode_groups(video, plan, start, end))) for start, end in pairwise(cuts)
        ]
    assert whole.shape[0] == plan.reference.num_tokens
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-9, rtol=1e-9)
    stored = policy.store.get(policy.encode_video(video, range(71)).key)
    assert stored is not None
    torch.testing.assert_close(stored, whole, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", SEEING)
def test_images_are_images(folders: Path, family: str) -> None:
    policy = load(folders, family)
    picture = NoiseVideo(frame_count=1)
    image, video = policy.encode_image(picture), policy.encode_video(picture, [0])
    assert image.key != video.key
    with pytest.raises(EngineUsageError, match="24 frames: expected 1"):
        policy.encode_image(NoiseVideo())


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_models_that_only_read_refuse_media(folders: Path, family: str) -> None:
    policy = load(folders, family)
    with pytest.raises(EngineUsageError, match=f"type {family} accepts no video"):
        policy.encode_video(NoiseVideo(), [0])
    with pytest.raises(EngineUsageError, match=f"type {family} accepts no image"):
        policy.encode_image(NoiseVideo(frame_count=1))


class TestBadFolders:
    def refuse(self, folder: Path, message: str) -> None:
        with pytest.raises(EngineUsageError, match=message) as caught:
            load_policy(folder, store=EmbeddingStore(folder.parent / "embeddings"))
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("family", FAMILIES)
    def test_damage(self, folders: Path, family: str, tmp_path: Path) -> None:
        weights = [path.relative_to(folders / family) for path in (folders / family).rglob("*.safetensors")]
        for number, path in enumerate(weights):
            folder = shutil.copytree(folders / family, tmp_path / str(number))
            (folder / path).write_bytes((folder / path).read_bytes()[:1000])
            self.refuse(folder, f"not a file of tensors|cut short|can't be loaded as {family}")
        folder = shutil.copytree(folders / family, tmp_path / "reader")
        for path in folder.rglob("tokenizer*"):
            path.unlink()
        self.refuse(folder, "tokenizer")

    @pytest.mark.parametrize(("family", "other"), [("qwen3", "qwen2"), ("qwen2", "qwen3"), ("qwen2_5_vl", "qwen3_vl")])
    def test_the_weights_of_another_family(self, folders: Path, family: str, other: str, tmp_path: Path) -> None:
        folder = shutil.copytree(folders / family, tmp_path / "model")
        shutil.copy(folders / other / "model.safetensors", folder)
        self.refuse(folder, "weights are missing or of another shape|asks for at least .* weights and the files hold")

    def test_a_family_that_is_not_supported(self, folders: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(folders / "qwen2", tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
        self.refuse(folder, r"model type 'mamba'; expected one of .*qwen3_vl_moe, vila; choose another model folder")

    def test_there_is_no_tiny_one_of_an_unknown_family(self, tmp_path: Path) -> None:
        with pytest.raises(EngineUsageError, match="family 'mamba': expected one of qwen2, "):
            build_tiny("mamba", tmp_path / "model")
