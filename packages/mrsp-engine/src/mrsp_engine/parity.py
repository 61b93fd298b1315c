"""Cases for tests of exactness: everything that may change how a group is computed, and nothing of what comes out.

A case names a model, a group, and how it is to be computed; `compute` returns its loss and every gradient, and
`largest_difference` compares two such outcomes by the measure the engine promises to keep. `covering_cases` chooses,
from all combinations, few cases in which every two settings meet. A package that brings a family of its own tests it by
running the same cases on its own tiny checkpoint.

Norms must be exact for this (`mrsp_engine.testing.use_exact_norms`) and the policy in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mrsp_engine.attention.split import AttentionSettings, Exchange
from mrsp_engine.collectives import sum_gradients
from mrsp_engine.families.base import Policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_groups
from mrsp_engine.media import MediaReference
from mrsp_engine.process_groups import SequenceGroup
from mrsp_engine.rows import PromptGroup
from mrsp_engine.testing import NoiseVideo

LOSS_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-9
"""Of the norm of all gradients together."""

QUESTION = "Which shape left first?\nA. red circle\nB. blue square"
Media = Literal["no media", "one video", "several videos"]
Memory = Literal["kept", "checkpointed", "offloaded"]
Split = tuple[int, int, Exchange]
"""Ranks, ranks that split the heads among them, and how the others exchange keys and values."""

BRANCHES: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "uneven": (((40, 0), (13, 0), (28, 0), (61, 0)),),
    "questions": (((25, 11), (30, 20), (7, 7), (19, 3)),),
    "one target": (((1, 0),),),
    "two groups": (((12, 0), (0, 0), (33, 2)), ((5, 1), (17, 0))),
}
"""Tokens and first scored token of every branch of every group; a second group has a prompt without media."""
SPLITS: tuple[Split, ...] = (
    (1, 1, "gather"),
    (2, 1, "gather"),
    (2, 1, "ring"),
    (2, 2, "gather"),
    (3, 1, "gather"),
    (3, 1, "ring"),
    (3, 3, "gather"),
    (4, 1, "gather"),
    (4, 1, "ring"),
    (4, 2, "gather"),
    (4, 2, "ring"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One way to compute one thing.

    Attributes:
        family: Name of the model's family.
        branches: A name in `BRANCHES`.
        media: What the prompt shows.
        split: Ranks and how they divide the row.
        shares_prompt: Whether the prompt is computed once.
        is_cached: Whether embeddings are in the store already.
        memory: What becomes of activations until backward.
    """

    family: str
    branches: str
    media: Media
    split: Split = (1, 1, "gather")
    shares_prompt: bool = True
    is_cached: bool = True
    memory: Memory = "kept"

    @property
    def subject(self) -> str:
        """What is computed; cases with the same subject must have the same outcome."""
        return f"{self.family} {self.branches} {self.media}"

    @property
    def reference(self) -> "ParityCase":
        """The plain way: one rank, every response with its own prompt, the model's ordinary forward pass."""
        return ParityCase(family=self.family, branches=self.branches, media=self.media, shares_prompt=False)


def every_case(families: Mapping[str, bool]) -> Iterator[ParityCase]:
    """All combinations; `families` says of each whether it sees videos."""
    for family, is_seeing in families.items():
        media = get_args(Media) if is_seeing else ("no media",)
        axes = product(BRANCHES, media, SPLITS, (True, False), (True, False), get_args(Memory))
        for branches, medium, split, shares_prompt, is_cached, memory in axes:
            yield ParityCase(
                family=family,
                branches=branches,
                media=medium,
                split=split,
                shares_prompt=shares_prompt,
                is_cached=is_cached,
                memory=memory,
            )


def covering_cases(families: Mapping[str, bool]) -> list[ParityCase]:
    """A selection in which every two settings that can meet do meet; the same in every run.

    Greedy: whichever case brings most new meetings comes next.
    """
    meetings = {case: _meetings(case) for case in every_case(families)}
    missing: set[tuple[object, ...]] = set().union(*meetings.values())
    chosen: list[ParityCase] = []
    while missing:
        best = max(meetings, key=lambda case: len(missing & meetings[case]))
        chosen.append(best)
        missing -= meetings.pop(best)
    return chosen


def compute(policy: Policy, case: ParityCase, group: SequenceGroup | None = None) -> dict[str, Tensor]:
    """Loss, log-probs and entropies of a case, and by name the gradients of all parameters and prompt embeddings.

    With several ranks every rank of the group must call it; all get the same outcome.
    """
    generator = torch.Generator().manual_seed(11)
    trained = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    groups: list[PromptGroup] = []
    for number, lengths in enumerate(BRANCHES[case.branches]):
        prompt = policy.build_prompt(QUESTION, _encode(policy, "no media" if number else case.media))
        trained[f"prompt {number}"] = nn.Parameter(policy.embed(prompt).detach())
        branches = [
            Branch(token_ids=tuple(torch.randint(0, 256, (length,), generator=generator).tolist()), scored_from=start)
            for length, start in lengths
        ]
        groups.append(PromptGroup(prompt=prompt, branches=branches, prompt_embeddings=trained[f"prompt {number}"]))
    policy.model.zero_grad()
    with _activations(policy, case.memory):
        scores = score_groups(
            policy,
            groups,
            temperature=0.8,
            share_prompt=case.shares_prompt,
            row_tokens=None if case == case.reference else 100_000,
            sequence_group=group,
            attention=AttentionSettings(head_ranks=case.split[1], exchange=case.split[2]),
            chunk_tokens=19,
        )
        logprobs = torch.cat([part for of_group in scores for part in of_group.logprobs])
        entropies = torch.cat([part for of_group in scores for part in of_group.entropies])
        weights = torch.randn(len(logprobs), generator=generator, dtype=torch.float64)
        loss = (weights * logprobs + 0.1 * logprobs**2).sum() / len(logprobs)
        loss.backward()
    if group is not None:
        sum_gradients(trained.values(), group)
    gradients = {f"d {name}": weight.grad for name, weight in trained.items() if weight.grad is not None}
    return {"loss": loss.detach(), "logprobs": logprobs.detach(), "entropies": entropies} | gradients


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The worst entry by its share of what is allowed (1 is the limit), and its name.

    The loss, log-probs and entropies may differ by `LOSS_TOLERANCE`, a gradient in norm by `GRADIENT_TOLERANCE` times
    the norm of all gradients. An entry that only one of the two has is infinitely wrong.
    """
    if actual.keys() != expected.keys():
        return float("inf"), ", ".join(sorted(actual.keys() ^ expected.keys()))
    norm = torch.stack([value.norm() for name, value in expected.items() if name.startswith("d ")]).norm().item()
    worst = (0.0, "")
    for name, value in expected.items():
        difference = actual[name] - value
        if name.startswith("d "):
            share = difference.norm().item() / norm / GRADIENT_TOLERANCE
        else:
            share = difference.abs().max().item() / LOSS_TOLERANCE
        # Written so that a NaN counts as wrong.
        worst = worst if share <= worst[0] else (share if share == share else float("inf"), name)
    return worst


def _meetings(case: ParityCase) -> set[tuple[object, ...]]:
    settings = (
        ("family", case.family),
        ("branches", case.branches),
        ("media", case.media),
        ("split", case.split),
        ("shares", case.shares_prompt),
        ("cached", case.is_cached),
        ("memory", case.memory),
    )
    return set(combinations(settings, 2))


def _encode(policy: Policy, media: Media) -> Sequence[MediaReference]:
    if media == "no media":
        return []
    first = policy.encode_video(NoiseVideo(), range(0, 24, 2))
    if media == "one video":
        return [first]
    return [first, policy.encode_video(NoiseVideo(seed=1, frame_count=9, height=56, width=84), range(0, 9, 2))]


def _activations(policy: Policy, memory: Memory) -> AbstractContextManager[object]:
    """Set what becomes of activations; the policy stays so until it is set otherwise."""
    model = policy.model
    switch = getattr(model, f"gradient_checkpointing_{'enable' if memory == 'checkpointed' else 'disable'}")
    switch()
    model.train(memory == "checkpointed")  # transformers checkpoints in training mode only
    return torch.autograd.graph.save_on_cpu() if memory == "offloaded" else nullcontext()
