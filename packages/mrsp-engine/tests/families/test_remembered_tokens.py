"""Every epoch asks for the same questions again: their tokens are made once, and long texts aren't kept."""

from collections import Counter

import pytest
from transformers import PreTrainedTokenizerBase

from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.families import load_policy
from mrsp_engine.families.base import Policy
from mrsp_engine.families.chat_prompts import LONGEST_REMEMBERED
from mrsp_engine.testing.fixtures import NoiseVideo
from mrsp_engine.tiny.families import build_tiny


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    root = tmp_path_factory.mktemp("remembered")
    build_tiny("qwen2_5_vl", root / "model")
    return load_policy(root / "model", store=EmbeddingStore(root / "embeddings"))


@pytest.fixture
def tokenised(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the tokenizer got each text."""
    counts: Counter[str] = Counter()
    kind = type(policy.tokenizer)
    right = kind.__call__

    def counting(self: PreTrainedTokenizerBase, text: str, **settings: object) -> object:
        counts[text] += 1
        return right(self, text, **settings)

    monkeypatch.setattr(kind, "__call__", counting)
    return counts


def test_a_question_is_tokenised_once_whoever_asks(policy: Policy, tokenised: Counter[str]) -> None:
    media = [policy.encode_video(NoiseVideo(seed=0, frame_count=4), range(4))]
    found = []
    for _ in range(3):
        _, tail_of = policy.build_shared_prompt(media)
        lengths = policy.prompt_length("Who?", media), policy.prompt_positions("Who?", media)
        prompt = policy.build_prompt("Who?", media)
        found.append((lengths, tail_of("Who?"), prompt.token_ids, policy.tokenise("He does.")))
    assert found[0] == found[1] == found[2]
    assert sum("Who?" in text for text in tokenised) == 1
    assert set(tokenised.values()) == {1}


def test_turns_that_differ_in_anything_are_told_apart(policy: Policy) -> None:
    videos = [policy.encode_video(NoiseVideo(seed=seed, frame_count=4), range(4)) for seed in (0, 1)]
    shown, systems = ([], videos[:1], videos[1:], videos), (None, "s")
    turns = [(text, media, system) for text in ("a", "b") for media in shown for system in systems]
    found = [policy.build_prompt(text, media, system=system) for text, media, system in turns * 2]
    assert len({(prompt.token_ids, prompt.media) for prompt in found}) == len(turns)
    tokens = [prompt.token_ids for prompt in found]
    assert tokens[: len(turns)] == tokens[len(turns) :]


def test_long_texts_are_not_kept(policy: Policy, tokenised: Counter[str]) -> None:
    word = "long "
    text = word * (LONGEST_REMEMBERED // len(word) + 1)
    assert policy.tokenise(text) == policy.tokenise(text)
    policy.build_prompt("Why?", [], system=text)
    policy.build_prompt("Why?", [], system=text)
    assert set(tokenised.values()) == {2}
