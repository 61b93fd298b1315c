"""Sharing the prompt changes nothing: log-probs, loss and every gradient equal those of separate plain rows."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mrsp_engine import rows as rows_module
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches, score_groups
from mrsp_engine.prompts import Prompt
from mrsp_engine.rows import PromptGroup
from mrsp_engine.testing.fixtures import NoiseVideo, use_exact_norms

TOLERANCE = 1e-9
LENGTHS = ((9, 0), (30, 4), (1, 0), (17, 17), (2, 1), (23, 0))  # tokens, first scored token


@dataclass(frozen=True, kw_only=True)
class Outcome:
    logprobs: list[Tensor]
    loss: Tensor
    gradients: dict[str, Tensor]


@pytest.fixture
def exact_policy(policy: Policy) -> Policy:
    use_exact_norms(policy.model)
    return policy


@pytest.fixture
def prompt(exact_policy: Policy, video: NoiseVideo) -> Prompt:
    media = [exact_policy.encode_video(video, range(0, 24, 2)), exact_policy.encode_video(video, range(5))]
    return exact_policy.build_prompt("Which shape left first?", media)


@pytest.fixture
def branches() -> list[Branch]:
    generator = torch.Generator().manual_seed(3)
    return [
        Branch(token_ids=tuple(torch.randint(0, 250, (length,), generator=generator).tolist()), scored_from=scored_from)
        for length, scored_from in LENGTHS
    ]


def clipped_loss(scores: list[Tensor]) -> Tensor:
    """A loss that weights every token differently and isn't linear in the log-probs."""
    flat = torch.cat(scores)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(len(flat), generator=generator, dtype=torch.float64)
    ratio = torch.exp(flat - flat.detach() + 0.3 * torch.rand(len(flat), generator=generator, dtype=torch.float64))
    surrogate = torch.minimum(ratio * weights, ratio.clamp(0.8, 1.2) * weights)
    return -(surrogate.sum() - 0.1 * (flat**2).sum()) / len(flat)


def run(policy: Policy, prompt: Prompt, branches: list[Branch], **settings: object) -> Outcome:
    embeddings = policy.embed(prompt).detach().requires_grad_()
    policy.model.zero_grad()
    scores = score_branches(policy, prompt, branches, prompt_embeddings=embeddings, **settings)  # type: ignore[arg-type]
    loss = clipped_loss(scores.logprobs)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    assert embeddings.grad is not None
    return Outcome(logprobs=scores.logprobs, loss=loss.detach(), gradients={**gradients, "prompt": embeddings.grad})


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def assert_equal(actual: Outcome, expected: Outcome) -> None:
    assert relative(actual.loss, expected.loss) <= TOLERANCE
    assert [len(scores) for scores in actual.logprobs] == [length - start for length, start in LENGTHS]
    assert actual.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        assert relative(actual.gradients[name], gradient) <= TOLERANCE, name


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_equals_plain(exact_policy: Policy, prompt: Prompt, branches: list[Branch], temperature: float) -> None:
    plain = run(exact_policy, prompt, branches, share_prompt=False, temperature=temperature)
    trained = {name for name, parameter in exact_policy.model.named_parameters() if parameter.requires_grad}
    assert plain.gradients.keys() == trained | {"prompt"}
    assert_equal(run(exact_policy, prompt, branches, temperature=temperature), plain)


def test_chunked_equals_whole(exact_policy: Policy, prompt: Prompt, branches: list[Branch]) -> None:
    whole = run(exact_policy, prompt, branches)
    assert_equal(run(exact_policy, prompt, branches, chunk_tokens=7), whole)


def test_checkpointed_layers_equal(exact_policy: Policy, prompt: Prompt, branches: list[Branch]) -> None:
    kept = run(exact_policy, prompt, branches)
    exact_policy.model.gradient_checkpointing_enable()  # type: ignore[operator]
    exact_policy.model.train()
    assert_equal(run(exact_policy, prompt, branches), kept)


def test_embedding_table_gets_the_gradient_of_prompt_and_branches(
    exact_policy: Policy, prompt: Prompt, branches: list[Branch]
) -> None:
    table = exact_policy.model.get_input_embeddings().weight  # type: ignore[operator]
    gradients: list[Tensor] = []
    for share_prompt in (False, True):
        scores = score_branches(exact_policy, prompt, branches, share_prompt=share_prompt)
        gradients += torch.autograd.grad(clipped_loss(scores.logprobs), table)
    assert relative(gradients[1], gradients[0]) <= TOLERANCE


def test_scores_are_those_of_the_whole_models_own_logits(
    exact_policy: Policy, prompt: Prompt, branches: list[Branch]
) -> None:
    branch = branches[1]
    embeddings = torch.cat([exact_policy.embed(prompt), exact_policy.embed_tokens(torch.tensor(branch.token_ids))])
    start = int(prompt.positions.max()) + 1
    tail = torch.arange(start, start + len(branch.token_ids)).expand(3, -1)
    with torch.no_grad():
        logits = exact_policy.model(
            inputs_embeds=embeddings[None], position_ids=torch.cat([prompt.positions, tail], 1)[:, None]
        ).logits[0]
        scores = score_branches(exact_policy, prompt, branches)
    expected = logits[prompt.length - 1 : -1].log_softmax(-1)
    wanted = expected[torch.arange(len(branch.token_ids)), torch.tensor(branch.token_ids)][branch.scored_from :]
    entropies = torch.distributions.Categorical(logits=expected).entropy()[branch.scored_from :]
    assert relative(scores.logprobs[1], wanted) <= TOLERANCE
    assert relative(scores.entropies[1], entropies) <= TOLERANCE


@pytest.mark.parametrize("chunk_tokens", [None, 7])
def test_entropies_have_the_gradient_of_the_whole_models_own_logits(
    exact_policy: Policy, prompt: Prompt, branches: list[Branch], chunk_tokens: int | None
) -> None:
    branch = replace(branches[1], scored_from=0)
    group = PromptGroup(prompt=prompt, branches=[branch])
    (scores,) = score_groups(exact_policy, [group], chunk_tokens=chunk_tokens, trains_entropy=True)
    scores.entropies[0].square().sum().backward()
    found = {name: p.grad.clone() for name, p in exact_policy.model.named_parameters() if p.grad is not None}
    exact_policy.model.zero_grad()
    embeddings = torch.cat([exact_policy.embed(prompt), exact_policy.embed_tokens(torch.tensor(branch.token_ids))])
    start = int(prompt.positions.max()) + 1
    tail = torch.arange(start, start + len(branch.token_ids)).expand(3, -1)
    logits = exact_policy.model(
        inputs_embeds=embeddings[None], position_ids=torch.cat([prompt.positions, tail], 1)[:, None]
    ).logits[0]
    torch.distributions.Categorical(logits=logits[prompt.length - 1 : -1]).entropy().square().sum().backward()
    expected = {name: p.grad for name, p in exact_policy.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    norm = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert ((found[name] - gradient).abs().max() / norm).item() <= TOLERANCE, name
    (without,) = score_groups(exact_policy, [group], chunk_tokens=chunk_tokens)
    assert not without.entropies[0].requires_grad


def test_branches_do_not_see_each_other(exact_policy: Policy, prompt: Prompt, branches: list[Branch]) -> None:
    with torch.no_grad():
        before = score_branches(exact_policy, prompt, branches).logprobs
        changed = [replace(branches[0], token_ids=tuple(reversed(branches[0].token_ids))), *branches[1:]]
        after = score_branches(exact_policy, prompt, changed).logprobs
    assert not before[0].equal(after[0])
    for kept, same in zip(before[1:], after[1:], strict=True):
        assert kept.equal(same)


def test_a_wrong_position_is_noticed(
    exact_policy: Policy, prompt: Prompt, branches: list[Branch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is sensitive: one branch token misplaced by one breaks it."""
    plain = run(exact_policy, prompt, branches, share_prompt=False)
    right = rows_module.continue_positions

    def misplaced(positions: Tensor, lengths: tuple[int, ...]) -> Tensor:
        row = right(positions, lengths).clone()
        row[:, positions.shape[1] + lengths[0] + 3] += 1
        return row

    monkeypatch.setattr(rows_module, "continue_positions", misplaced)
    with pytest.raises(AssertionError):
        assert_equal(run(exact_policy, prompt, branches), plain)


def test_impossible_requests_are_refused(exact_policy: Policy, prompt: Prompt, branches: list[Branch]) -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        score_branches(exact_policy, prompt, branches, temperature=0)
    with pytest.raises(ValueError, match="prompt embeddings"):
        score_branches(exact_policy, prompt, branches, prompt_embeddings=torch.zeros(3, 96, dtype=torch.float64))
