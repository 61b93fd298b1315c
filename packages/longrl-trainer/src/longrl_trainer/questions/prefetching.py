"""Opening and encoding media in the background, while the steps before the one that needs them sample and train.

Workers open a file, compare its digest, and write its embeddings to the store's disk, if a question about it is short
enough. Nothing is decided here: the step itself encodes what is missing, together with all ranks, and finds out there
what can't be encoded. So a step's questions don't depend on how far the workers came.

Only frames are encoded here that go through frozen weights, or through none; see
`longrl_trainer.questions.step_media.storing`.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, Lock

import torch
from torch import Tensor

from longrl_trainer.config.sections import DataSection
from longrl_trainer.questions.encoding import File, Shown, file_of, open_file, planned_among, references_of
from longrl_trainer.questions.media import opener_for
from longrl_trainer.questions.question import DroppedMedium
from longvideo_reason_data.records.medium import MediumKind, RecordMedium
from mrsp_engine.embeddings.entries import DiskRefusedError
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.encoding.parallel import PlannedMedium
from mrsp_engine.families.base import Policy

MAX_WORKERS = 4

IsWorthEncoding = Callable[[Sequence[MediaReference]], bool]
"""Whether a question about these media, and perhaps others, is short enough."""


class Prefetcher(AbstractContextManager["Prefetcher"]):
    """Opens and encodes files for a policy, ahead of their use.

    Args:
        data: Where the files are, and which of their frames are shown.
        policy: Encodes them; its store keeps what coming steps need for as long as this object is open.
        num_ranks: Processes that share this machine's cores.
    """

    def __init__(self, data: DataSection, policy: Policy, num_ranks: int = 1) -> None:
        self._data = data
        self._policy = policy
        self._openers = {kind: opener_for(policy, kind) for kind in MediumKind}
        num_workers = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // (2 * num_ranks)))
        self._ahead = ThreadPoolExecutor(num_workers, thread_name_prefix="prefetch")
        self._at_once = ThreadPoolExecutor(num_workers, thread_name_prefix="open")
        self._jobs: dict[File, Future[Shown | DroppedMedium]] = {}
        self._keys_ahead: dict[File, tuple[str, ...]] = {}
        self._keys_kept: frozenset[str] = frozenset()
        self._only_keys: frozenset[str] | None = None
        self._is_store_full = False
        self._is_closed = Event()
        # A family without an encoder for frames runs its own modules when a file is opened.
        self._in_turn = nullcontext() if policy.encoder is not None else Lock()
        policy.store.disk.is_needed = self._is_needed

    def collect(self, media: Sequence[RecordMedium]) -> list[Shown | DroppedMedium]:
        """What was found in files that the coming step needs; those that no worker has begun are opened only."""
        waited: list[Future[Shown | DroppedMedium]] = []
        for medium in media:
            job = self._jobs.pop(file_of(medium), None)
            if job is None or job.cancel():
                job = self._at_once.submit(self._open, medium)
            waited.append(job)
        return [job.result() for job in waited]

    def look_ahead(self, wanted: Mapping[RecordMedium, Sequence[IsWorthEncoding]], kept: frozenset[str]) -> None:
        """Open and encode these files, in this order, and forget all others.

        Args:
            wanted: Files with the questions that need them.
            kept: Keys of other entries that the current step or a coming one needs.
        """
        self._keys_kept = kept
        files = {file_of(medium) for medium in wanted}
        for file in [file for file in self._jobs if file not in files]:
            self._jobs.pop(file).cancel()
        for file in [file for file in self._keys_ahead if file not in files]:
            self._keys_ahead.pop(file, None)
        self._is_store_full = False
        for medium, questions in wanted.items():
            if file_of(medium) not in self._jobs:
                self._jobs[file_of(medium)] = self._ahead.submit(self._open_and_encode, medium, questions)

    @contextmanager
    def only_needed(self, keys: frozenset[str]) -> Generator[None]:
        """Within the block the store may throw out everything but these entries; they are needed afterwards too."""
        self._only_keys = keys
        try:
            yield
        finally:
            self._keys_kept |= keys
            self._only_keys = None

    def __exit__(self, *_: object) -> None:
        """Stop the workers; what they are at is not finished."""
        self._is_closed.set()
        for pool in (self._ahead, self._at_once):
            pool.shutdown(wait=True, cancel_futures=True)
        self._policy.store.disk.is_needed = None

    def _is_needed(self, digest: str) -> bool:
        if self._only_keys is not None:
            return digest in self._only_keys
        return digest in self._keys_kept or any(digest in keys for keys in list(self._keys_ahead.values()))

    def _open(self, medium: RecordMedium) -> Shown | DroppedMedium:
        with self._in_turn, torch.no_grad():
            return open_file(self._data, self._policy, medium, self._openers[medium.kind])

    def _open_and_encode(self, medium: RecordMedium, questions: Sequence[IsWorthEncoding]) -> Shown | DroppedMedium:
        shown = self._open(medium)
        if isinstance(shown, tuple) and any(is_worth_encoding(references_of(shown)) for is_worth_encoding in questions):
            planned = planned_among([shown])
            self._keys_ahead[file_of(medium)] = tuple(item.plan.key.digest for item in planned)
            for item in planned:
                self._encode(item)
        return shown

    def _encode(self, medium: PlannedMedium) -> None:
        """Write a medium's entry, if the disk has room for it; a failure is found again by the step that needs it."""
        encoder, store, plan = self._policy.encoder, self._policy.store, medium.plan
        if encoder is None or self._is_store_full or store.is_disk_refusing:
            return

        def chunks() -> Iterator[Tensor]:
            for chunk in encoder.encode_groups(medium.video, plan):
                if self._is_closed.is_set():
                    raise InterruptedError
                yield chunk

        try:
            with torch.no_grad():
                store.disk.write(plan.key.to_json(), plan.num_rows, chunks)
        except DiskRefusedError:
            self._is_store_full = True
        except Exception:  # whatever it is: the step meets it too, and there all ranks learn of it
            return
