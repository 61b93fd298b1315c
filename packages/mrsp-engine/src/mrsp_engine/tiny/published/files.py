"""The files of a published checkpoint: weights in shards with their index, tokenizer, JSON, card and licence.

Everything is written like transformers 4 wrote it. The module is independent of models.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mrsp_engine.tiny.tokenizer import END_OF_TEXT, END_OF_TURN, SPECIAL_TOKENS, train_tokenizer

__all__ = ["PLAIN_TOKENS", "PublishedTokenizer", "create_weights", "write_card", "write_json", "write_weights"]

CORPUS = (
    "Which shape left first?",
    "The red circle met the blue square at 00:12.",
    "A. red\nB. blue\nC. green\nD. none",
    "<think>The circle came at 00:12.</think><answer>A</answer>",
    "<0.5 seconds><12.5 seconds>",
)
VOCABULARY_SIZE = 512
FURTHER_TOKENS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
"""Special tokens of the Qwen series that the engine doesn't use; they are the last special ones there."""
PLAIN_TOKENS = ("<tool_call>", "</tool_call>")
"""Added tokens that are not special."""
WEIGHT_SCALE = 5.0
"""Factor over freshly initialised weights, with which positions would hardly matter."""


def write_json(path: Path, values: Any) -> None:
    """Write JSON with the keys in the given order, and a line break at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_card(folder: Path, name: str) -> None:
    """Write a card, a licence, and git's attributes for large files."""
    (folder / "README.md").write_text(
        f"---\nlicense: other\nlibrary_name: transformers\n---\n\n# {name}\n\nSmall and random.\n", encoding="utf-8"
    )
    (folder / "LICENSE").write_text(f"Licence of {name}: do as you like.\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n", encoding="utf-8")


def create_weights(model_class: Any, config: Any, seed: int) -> dict[str, Tensor]:
    """Random weights in bfloat16, under the names of transformers' class; a tied head is omitted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = model_class(config)
    weights = dict(model.named_parameters())  # each once, under its first name
    return {
        name: (weight.detach() * (WEIGHT_SCALE if weight.dim() > 1 else 1.0)).to(torch.bfloat16)
        for name, weight in weights.items()
    }


def write_weights(folder: Path, weights: Mapping[str, Tensor], *, num_shards: int = 1) -> None:
    """Write `model.safetensors`, or shards of about the same size with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if num_shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    sizes = {name: weight.numel() * weight.element_size() for name, weight in weights.items()}
    total = sum(sizes.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(num_shards)]
    before = 0
    for name, weight in weights.items():
        shards[min(num_shards - 1, before * num_shards // total)][name] = weight
        before += sizes[name]
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


class PublishedTokenizer:
    """A byte-level BPE with the special tokens of the Qwen series, and the files that transformers 4 writes for it.

    Args:
        specials: The special tokens.
        plain: The added tokens after them that are not special.
        corpus: Texts on which it is trained.
        vocabulary_size: Upper bound of the number of tokens before the added ones, and of 8 more.

    Attributes:
        ids: Every added token's id.
        size: Number of tokens, added ones included.
    """

    def __init__(
        self,
        *,
        specials: Sequence[str] = (*SPECIAL_TOKENS, *FURTHER_TOKENS),
        plain: Sequence[str] = PLAIN_TOKENS,
        corpus: Iterable[str] = CORPUS,
        vocabulary_size: int = VOCABULARY_SIZE,
    ) -> None:
        trained = train_tokenizer(corpus, vocabulary_size, 32768)
        self._content: dict[str, Any] = json.loads(trained.backend_tokenizer.to_str())
        vocabulary: dict[str, int] = self._content["model"]["vocab"]
        ordinary = {token: index for token, index in vocabulary.items() if token not in SPECIAL_TOKENS}
        self._content["model"]["vocab"] = ordinary
        self._specials = tuple(specials)
        added = [*specials, *plain]
        self.ids = {token: len(ordinary) + place for place, token in enumerate(added)}
        self.size = len(ordinary) + len(added)
        self._added = {
            token: {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token in specials,
            }
            for token in added
        }
        self._content["added_tokens"] = [{"id": self.ids[token], **entry} for token, entry in self._added.items()]

    def padded_size(self, multiple: int = 64) -> int:
        """Number of rows of an embedding, which is larger than the number of tokens."""
        return math.ceil((self.size + 1) / multiple) * multiple

    def write(self, folder: Path, *, template: str, max_length: int, is_fast: bool = True, **values: Any) -> None:
        """Write its files.

        Args:
            folder: The output folder.
            template: Chat template, in `tokenizer_config.json`.
            max_length: `model_max_length`.
            is_fast: With `tokenizer.json`; otherwise with what the slow classes of transformers 4 saved in its place.
            values: Additional keys of `tokenizer_config.json`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "vocab.json", self._content["model"]["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in self._content["model"]["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        if is_fast:
            write_json(folder / "tokenizer.json", self._content)
        else:
            write_json(folder / "added_tokens.json", dict(sorted(self.ids.items())))
            end, padding = (self._added[token] | {"special": None} for token in (END_OF_TURN, END_OF_TEXT))
            tokens = {"eos_token": end, "pad_token": padding}
            for entry in tokens.values():
                del entry["special"]
            write_json(folder / "special_tokens_map.json", tokens)
        config = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(self.ids[token]): entry for token, entry in self._added.items()},
            "additional_special_tokens": [token for token in self._specials if token != END_OF_TEXT],
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TURN,
            "errors": "replace",
            "model_max_length": max_length,
            "pad_token": END_OF_TEXT,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
            **values,
        }
        write_json(folder / "tokenizer_config.json", config)
