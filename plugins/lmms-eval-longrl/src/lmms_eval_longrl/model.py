"""A checkpoint of the engine as a model of lmms-eval.

Prompts, positions and embeddings are those of training: media are encoded once into the store, by content, frames and
weights, and every further question about them, in any task or run, reads them. The prompt of a task is taken as it is;
so are its generation settings, of which `num_beams` has to be 1.

    lmms-eval --model longrl --model_args pretrained=FOLDER,num_frames=64 --tasks videomme --output_path results
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from lmms_eval_longrl.media import PictureFrames, TaskVideo
from mrsp_engine.embeddings.reference import MediaReference
from mrsp_engine.embeddings.store import EmbeddingStore
from mrsp_engine.encoding.frame_budget import FrameBudget
from mrsp_engine.errors import EngineUsageError
from mrsp_engine.families import load_policy
from mrsp_engine.layout import Branch
from mrsp_engine.logprobs import score_branches
from mrsp_engine.prompts import Prompt
from mrsp_engine.rollout.base import Refusal, RolloutEngine, SamplingSettings
from mrsp_engine.rollout.transformers import TransformersRolloutEngine

__all__ = ["LongRlModel"]

MAX_NEW_TOKENS = 1024
"""Where a task names no limit."""
ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One prompt and how it is to be answered.

    Attributes:
        prompt: The prompt.
        sampling: The task's generation settings.
        until: Strings that end the answer.
    """

    prompt: Prompt
    sampling: SamplingSettings
    until: tuple[str, ...]


class LongRlModel(lmms):
    """See the module.

    Args:
        pretrained: Checkpoint folder.
        num_frames: Frames of every video, evenly spread; all of a shorter one.
        frame_pixels: Maximum pixels of a frame; the checkpoint's own limit by default.
        engine: "transformers" or "vllm", which has to be installed.
        dtype: "float32", "bfloat16" or "float16".
        device: Such as "cpu" or "cuda"; by default the GPU if there is one.
        store: Folder of the embeddings.
        max_model_len: Maximum tokens of a prompt with its answer, for vLLM.
        memory_bytes: Memory for keys and values, for vLLM.
        system: System prompt.
        batch_size: Prompts that are given to the engine together.

    Raises:
        EngineUsageError: A setting is wrong, or the folder is no checkpoint of the engine.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        num_frames: int = 64,
        frame_pixels: int | None = None,
        engine: str = "transformers",
        dtype: str = "bfloat16",
        device: str | None = None,
        store: str = "embeddings",
        max_model_len: int = 32768,
        memory_bytes: int = 4 * 1024**3,
        system: str | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ) -> None:
        super().__init__()
        unknown.pop("max_batch_size", None)  # lmms-eval passes it to every model
        if unknown:
            raise EngineUsageError(f"model_args {', '.join(sorted(unknown))}: not settings of this model")
        if num_frames < 1:
            raise EngineUsageError(f"num_frames={num_frames}: expected 1 or more")
        if engine not in ENGINES:
            raise EngineUsageError(f"engine={engine!r}: expected one of {', '.join(ENGINES)}")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._num_frames, self._system, self._batch_size = num_frames, system, int(batch_size)
        self._budget = FrameBudget(frame_pixels=frame_pixels)
        self._policy = load_policy(
            Path(pretrained), dtype=getattr(torch, dtype), store=EmbeddingStore(Path(store)), device=place
        )
        self._policy.model.requires_grad_(False)
        self._media: dict[str, MediaReference] = {}
        self._sampler: RolloutEngine = TransformersRolloutEngine(self._policy)
        if engine == "vllm":
            from mrsp_engine.rollout.vllm.engine import VllmRolloutEngine

            self._sampler = VllmRolloutEngine(
                Path(pretrained),
                self._policy.store,
                max_model_len=max_model_len,
                memory_bytes=memory_bytes,
                dtype=dtype,
            )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer every request; see `lmms.generate_until`.

        Raises:
            EngineUsageError: A prompt can't be answered, such as one that is too long.
        """
        answers: list[str] = []
        with tqdm(total=len(requests), disable=self.rank != 0, desc="longrl") as bar:
            for start in range(0, len(requests), self._batch_size):
                batch = [self._ask(*request.args) for request in requests[start : start + self._batch_size]]
                answers += self._answer(batch)
                bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of a continuation, and whether greedy decoding gives it; see `lmms.loglikelihood`."""
        found: list[tuple[float, bool]] = []
        for request in tqdm(requests, disable=self.rank != 0, desc="longrl"):
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            text = continuation if isinstance(continuation, str) else continuation(self.task_dict[task][split][doc_id])
            prompt = self._prompt(context, doc_to_visual, doc_id, task, split)
            token_ids = self._policy.tokenise(text)
            with torch.no_grad():
                scores = score_branches(self._policy, prompt, [Branch(token_ids=token_ids)])
            (greedy,) = self._sampler.generate([prompt], SamplingSettings(temperature=0.0, max_tokens=len(token_ids)))
            is_greedy = not isinstance(greedy, Refusal) and greedy[0].token_ids == token_ids
            found.append((float(scores.logprobs[0].sum()), is_greedy))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not possible: a prompt has one turn."""
        raise EngineUsageError("this model answers one turn; choose a task without rounds")

    def _ask(
        self, context: str, settings: dict[str, Any], doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> Asked:
        if settings.get("num_beams", 1) not in (None, 1):
            raise EngineUsageError(f"{task}: num_beams={settings['num_beams']}: expected 1, as beams aren't searched")
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        until = settings.get("until") or ()
        return Asked(
            prompt=self._prompt(context, doc_to_visual, doc_id, task, split),
            sampling=SamplingSettings(
                temperature=temperature,
                top_p=float(settings.get("top_p") or 1.0),
                max_tokens=int(settings.get("max_new_tokens", MAX_NEW_TOKENS)),
                seed=0 if temperature == 0 else None,
            ),
            until=(until,) if isinstance(until, str) else tuple(until),
        )

    def _prompt(self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> Prompt:
        shown = doc_to_visual(self.task_dict[task][split][doc_id]) or ()
        media = [self._refer(medium, task) for medium in shown]
        return self._policy.build_prompt(context, media, system=self._system)

    def _refer(self, medium: Any, task: str) -> MediaReference:
        if isinstance(medium, Image.Image):
            return self._policy.encode_image(PictureFrames(medium))
        if not isinstance(medium, str | Path):
            raise EngineUsageError(f"{task}: shows a {type(medium).__name__}; this model takes videos and pictures")
        name = str(medium)
        if name not in self._media:
            video = TaskVideo(Path(name))
            count = min(self._num_frames, video.frame_count)
            frames = np.linspace(0, video.frame_count - 1, count).round().astype(int).tolist()
            self._media[name] = self._policy.encode_video(video, frames, budget=self._budget)
        return self._media[name]

    def _answer(self, batch: Sequence[Asked]) -> list[str]:
        answers: list[str] = []
        start = 0
        while start < len(batch):  # prompts with the same settings together, in their order
            sampling = batch[start].sampling
            end = next((i for i in range(start, len(batch)) if batch[i].sampling != sampling), len(batch))
            for asked, outcome in zip(
                batch[start:end],
                self._sampler.generate([asked.prompt for asked in batch[start:end]], sampling),
                strict=True,
            ):
                if isinstance(outcome, Refusal):
                    raise EngineUsageError(outcome.message)
                answers.append(_cut(outcome[0].text, asked.until))
            start = end
        return answers


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of these strings."""
    places = [text.find(end) for end in until if end and end in text]
    return text[: min(places, default=len(text))]
