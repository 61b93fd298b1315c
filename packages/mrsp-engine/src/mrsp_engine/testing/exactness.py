"""Cases for tests of exactness: everything that may change how a group is computed, but not the result.

A case names a model, a group, and how it is to be computed; `compute` returns its loss and every gradient, and
`largest_difference` compares two outcomes by the tolerances that the engine promises. `covering_cases` selects a few of
all combinations, in which every pair of settings occurs. A package with a family of its own tests it by running the
same cases on its own tiny checkpoint.

Where vision is trained, the gradients of tower and projector are compared instead of those with respect to the prompt's
embeddings, through which they pass.

Norms must be exact for this (`mrsp_engine.testing.fixtures.use_exact_norms`) and the policy in float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mrsp_engine.attention.split import AttentionSettings, Exchange
from mrsp_engine.distributed.collectives import sum_gradients
from mrsp_engine.distributed.process_groups import SequenceGroup
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.frame_encoder import FrameEncoder
from mrsp_engine.encoding.parallel import PlannedMedium, UnusableMedium, encode_live, encode_media
from mrsp_engine.errors import EngineError, EngineUsageError
from mrsp_engine.families.base import Policy
from mrsp_engine.families.language_policy import LanguagePolicy
from mrsp_engine.families.qwen.qwen2_5_omni import Qwen25OmniPolicy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_groups
from mrsp_engine.rows import PromptGroup
from mrsp_engine.testing.fixtures import NoiseSound, NoiseVideo

LOSS_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-9
"""As a share of the norm of all gradients together."""

QUESTION = "Which shape left first?\nA. red circle\nB. blue square"
Media = Literal["no media", "one video", "videos and an image", "a heard film"]
SEEN_MEDIA: tuple[Media, ...] = ("no media", "one video", "videos and an image")
"""For every family that sees; a film is heard by few."""
Vision = Literal["stored", "encoded", "trained"]
"""Embeddings are already in the store, are first encoded by all ranks, or are encoded with gradients."""
Memory = Literal["kept", "checkpointed", "offloaded"]
Split = tuple[int, int, Exchange]
"""Number of ranks, how many of them split the heads, and how the others exchange keys and values."""

BRANCHES: Mapping[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "uneven": (((40, 0), (13, 0), (28, 0), (61, 0)),),
    "questions": (((25, 11), (30, 20), (7, 7), (19, 3)),),
    "one target": (((1, 0),),),
    "two groups": (((12, 0), (0, 0), (33, 2)), ((5, 1), (17, 0))),
}
"""Number of tokens and first scored token of every branch of every group; a second group has a prompt without media."""
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
"""For six query heads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityFamily:
    """The cases that a model allows.

    Attributes:
        is_seeing: Whether it sees videos and images.
        splits: The ways to divide its row.
    """

    is_seeing: bool
    splits: tuple[Split, ...] = SPLITS


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One way to compute one group.

    Attributes:
        family: Name of the model's family.
        branches: A name in `BRANCHES`.
        media: The media in the prompt.
        split: Ranks and how they divide the row.
        shares_prompt: Whether the prompt is computed once.
        vision: Where embeddings come from.
        memory: What happens to activations until the backward pass.
    """

    family: str
    branches: str
    media: Media
    split: Split = (1, 1, "gather")
    shares_prompt: bool = True
    vision: Vision = "stored"
    memory: Memory = "kept"

    @property
    def is_vision_trained(self) -> bool:
        """Whether tower and projector have gradients."""
        return self.vision == "trained"

    @property
    def subject(self) -> str:
        """What is computed; cases with the same subject must have the same result."""
        return f"{self.family}, {self.branches}, {self.media}{', vision trained' if self.is_vision_trained else ''}"

    @property
    def reference(self) -> "ParityCase":
        """The plain path: one rank, every response with its own prompt, the model's ordinary forward pass."""
        return ParityCase(
            family=self.family,
            branches=self.branches,
            media=self.media,
            vision="trained" if self.is_vision_trained else "stored",
            shares_prompt=False,
        )


def every_case(families: Mapping[str, ParityFamily]) -> Iterator[ParityCase]:
    """All combinations."""
    for name, family in families.items():
        for branches, media in product(BRANCHES, SEEN_MEDIA if family.is_seeing else ("no media",)):
            visions = get_args(Vision) if media != "no media" else ("stored",)
            axes = product(family.splits, (True, False), visions, get_args(Memory))
            for split, shares_prompt, vision, memory in axes:
                yield ParityCase(
                    family=name,
                    branches=branches,
                    media=media,
                    split=split,
                    shares_prompt=shares_prompt,
                    vision=vision,
                    memory=memory,
                )


def covering_cases(families: Mapping[str, ParityFamily]) -> list[ParityCase]:
    """A selection in which every possible pair of settings occurs; the same in every run.

    Greedy: the case with the most new pairs comes next; a case whose result others need too comes before others.
    """
    numbers: dict[tuple[object, ...], int] = {}
    meetings: dict[ParityCase, int] = {}  # as bits
    for case in every_case(families):
        meetings[case] = sum(1 << numbers.setdefault(meeting, len(numbers)) for meeting in _meetings(case))
    missing = (1 << len(numbers)) - 1
    chosen: list[ParityCase] = []
    subjects: set[str] = set()
    while missing:
        best = max(
            meetings, key=lambda case: 2 * (missing & meetings[case]).bit_count() - (case.subject not in subjects)
        )
        chosen.append(best)
        subjects.add(best.subject)
        missing &= ~meetings.pop(best)
    return chosen


def parity_media(encoder: FrameEncoder, media: Media, seed: int = 0) -> list[PlannedMedium]:
    """The media of a case; another seed gives different ones of the same sizes."""
    if media == "no media":
        return []
    first = NoiseVideo(seed=seed, frame_count=24)
    found = [PlannedMedium(video=first, plan=encoder.plan(first, range(0, 24, 3)))]
    if media == "videos and an image":
        image = NoiseVideo(seed=seed + 1, frame_count=1, height=112, width=84)
        second = NoiseVideo(seed=seed + 2, frame_count=9, height=56, width=84)
        found.append(PlannedMedium(video=image, plan=encoder.plan_image(image)))
        found.append(PlannedMedium(video=second, plan=encoder.plan(second, range(0, 9, 2))))
    return found


def compute(policy: LanguagePolicy, case: ParityCase, group: SequenceGroup | None = None) -> dict[str, Tensor]:
    """Loss, log-probs and entropies of a case, and the gradients of all parameters and prompt embeddings by name.

    With several ranks every rank of the group must call this, with a store in the same folder; all get the same result.
    Sets which of the policy's parameters are trained.
    """
    generator = torch.Generator().manual_seed(11)
    media: list[PlannedMedium] = []
    sounds = [_film_sound(policy)] if case.media == "a heard film" else []
    if policy.encoder is not None:
        media = parity_media(policy.encoder, case.media)
        policy.encoder.parts.requires_grad_(case.is_vision_trained)
    trained = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    policy.model.zero_grad()
    with _activations(policy, case.memory), _vision(policy, case, media, group):
        groups: list[PromptGroup] = []
        for number, lengths in enumerate(BRANCHES[case.branches]):
            references = [] if number else [medium.plan.reference for medium in media] + sounds
            prompt = policy.build_prompt(QUESTION, references)
            embeddings = None
            if not case.is_vision_trained:
                embeddings = trained[f"prompt {number}"] = nn.Parameter(policy.embed(prompt).detach())
            branches = [
                Branch(token_ids=tuple(torch.randint(0, 256, (size,), generator=generator).tolist()), scored_from=start)
                for size, start in lengths
            ]
            groups.append(PromptGroup(prompt=prompt, branches=branches, prompt_embeddings=embeddings))
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
    # The plain path has no gradient for layers after the one whose output is used.
    gradients = {
        f"d {name}": torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in trained.items()
    }
    return {"loss": loss.detach(), "logprobs": logprobs.detach(), "entropies": entropies} | gradients


def _film_sound(policy: LanguagePolicy) -> MediaReference:
    """The sound of the film, a little longer than a chunk; always stored."""
    if not isinstance(policy, Qwen25OmniPolicy):
        raise EngineUsageError(f"family {policy.name}: hears no films; choose other media")
    return policy.encode_film_sound(NoiseSound(seed=5, num_samples=36_000))


def largest_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference as a share of its tolerance (1 is the limit), and the name of the entry.

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
        ("vision", case.vision),
        ("memory", case.memory),
    )
    return set(combinations(settings, 2))


def _vision(
    policy: LanguagePolicy, case: ParityCase, media: Sequence[PlannedMedium], group: SequenceGroup | None
) -> AbstractContextManager[object]:
    """Put all media's embeddings into the policy's store, within a `with` block or permanently."""
    if policy.encoder is None or not media:
        return nullcontext()
    if case.is_vision_trained:
        return policy.store.lend(encode_live(policy.encoder, media, group))
    for found in encode_media(policy.encoder, media, policy.store, group):
        if isinstance(found, UnusableMedium):
            raise EngineError(found.message)
    return nullcontext()


def _activations(policy: Policy, memory: Memory) -> AbstractContextManager[object]:
    """Set what happens to activations; the setting stays until it is changed."""
    model = policy.model
    switch = getattr(model, f"gradient_checkpointing_{'enable' if memory == 'checkpointed' else 'disable'}")
    switch()
    model.train(memory == "checkpointed")  # transformers checkpoints in training mode only
    return torch.autograd.graph.save_on_cpu() if memory == "offloaded" else nullcontext()
