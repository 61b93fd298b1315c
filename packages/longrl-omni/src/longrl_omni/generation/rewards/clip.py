"""How well a picture fits its prompt, by models of CLIP's kind (arXiv 2103.00020) in local folders.

`clip_similarity` is the cosine of the embeddings of picture and prompt (CLIPScore, arXiv 2104.08718, without its factor
of 2.5 and its cut at 0). `pick_score` is that times the model's learned scale, as in Pick-a-Pic (arXiv 2305.01569), and
meant for its PickScore model. A prompt longer than the text encoder reads (77 tokens) is cut there, as in both papers.

Shape legend: B pictures, T different prompts, D width of the embeddings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from longrl_omni.generation.model_parts import load_part, refuse_large_network
from longrl_omni.generation.rewards.base import PictureRequest
from longrl_omni.generation.rewards.jpeg import as_bytes
from longrl_trainer.errors import TrainerUsageError
from longrl_trainer.rewards.base import RewardResult, RewardStatus
from mrsp_engine.families.checkpoint_folder import CheckpointFolder


class ClipSettings(BaseModel):
    """Which model, and where it computes."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    folder: Path
    """The model in transformers' layout (a `CLIPModel`), with weights in safetensors."""
    processor: Path | None = None
    """Folder of its tokenizer and its processor of pictures, if they aren't in `folder`; PickScore's are those of
    CLIP-ViT-H-14.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it computes; `auto` takes a GPU if there is one."""
    pictures_per_pass: int = Field(default=32, ge=1)
    """Pictures that go through the model together."""


class ClipScorer:
    """A model of CLIP's kind with its processor, frozen, in float32.

    Args:
        settings: Where it is.
        name: Of the reward, for messages.

    Raises:
        TrainerError: There is no such model, or it isn't one of this kind.
    """

    def __init__(self, settings: ClipSettings, name: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        folders = {"folder": settings.folder, "processor": settings.processor or settings.folder}
        for setting, folder in folders.items():
            if not folder.is_dir():
                raise TrainerUsageError(f"`rewards.{name}.{setting}` = {folder}: there is no such folder")
            CheckpointFolder(folder).admit()
        with load_part(settings.folder, "the model", setting=f"rewards.{name}.folder"):
            kind = CheckpointFolder(settings.folder).read("config.json").get("model_type")
            if kind != "clip":
                raise ValueError(f"model_type {kind!r}, expected 'clip'")
            refuse_large_network(settings.folder, CLIPModel)
            self._model: Any = CLIPModel.from_pretrained(
                settings.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        with load_part(folders["processor"], "the processor", setting=f"rewards.{name}.processor"):
            self._processor: Any = CLIPProcessor.from_pretrained(folders["processor"], local_files_only=True)
        has_gpu = torch.cuda.is_available()
        if settings.device == "cuda" and not has_gpu:
            raise TrainerUsageError(f'rewards.{name}.device="cuda": there is no such device; set it to "auto" or "cpu"')
        self._device = torch.device("cuda" if has_gpu and settings.device != "cpu" else "cpu")
        self._model.requires_grad_(False).eval().to(self._device)
        self._most = settings.pictures_per_pass
        self.scale = float(self._model.logit_scale.exp())
        """The learned factor of similarities."""
        self.width: int = self._model.config.projection_dim
        """D."""

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Tensor]) -> Tensor:
        """The embeddings [B, D] of pictures with values from 0 to 1, of length 1, in host memory."""
        from PIL import Image

        found: list[Tensor] = []
        for start in range(0, len(pictures), self._most):
            some = pictures[start : start + self._most]
            images = [Image.fromarray(as_bytes(picture).numpy()) for picture in some]
            inputs = self._processor(images=images, return_tensors="pt").to(self._device)
            found.append(self._model.get_image_features(**inputs).pooler_output)
        return _unit(torch.cat(found))

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings [T, D] of prompts, of length 1, in host memory."""
        found: list[Tensor] = []
        for start in range(0, len(prompts), self._most):
            some = list(prompts[start : start + self._most])
            inputs = self._processor(text=some, return_tensors="pt", padding=True, truncation=True)
            found.append(self._model.get_text_features(**inputs.to(self._device)).pooler_output)
        return _unit(torch.cat(found))

    def compare(self, requests: Sequence[PictureRequest]) -> list[float]:
        """The cosine of the embeddings of every picture and its prompt."""
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        prompts_TD = self.embed_prompts(prompts)
        pictures_BD = self.embed_pictures([request.picture for request in requests])
        return (pictures_BD * prompts_TD[[place[request.prompt] for request in requests]]).sum(dim=1).tolist()


class ClipSimilarityReward:
    """The cosine of the embeddings of picture and prompt."""

    Settings = ClipSettings

    def __init__(self, settings: ClipSettings) -> None:
        self._scorer = ClipScorer(settings, "clip_similarity")

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        return [RewardResult(value=value, status=RewardStatus.OK) for value in self._scorer.compare(requests)]


class PickScoreReward:
    """The cosine times the model's scale: PickScore, whose values are around 20."""

    Settings = ClipSettings

    def __init__(self, settings: ClipSettings) -> None:
        self._scorer = ClipScorer(settings, "pick_score")

    def judge(self, requests: Sequence[PictureRequest]) -> list[RewardResult]:
        """Judge pictures."""
        scale = self._scorer.scale
        return [RewardResult(value=scale * value, status=RewardStatus.OK) for value in self._scorer.compare(requests)]


def _unit(embeddings_BD: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings_BD.float(), dim=1).cpu()
