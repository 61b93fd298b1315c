"""The tokenizer and the chat template of the tiny checkpoint.

A byte-level BPE with the pre-tokenisation of the Qwen2 tokenizer, trained on the caller's texts, so that a small
vocabulary is spent on the words that occur. The module is independent of the model.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, cast

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from mrsp_engine.errors import EngineUsageError

__all__ = ["CHAT_TEMPLATE", "DEFAULT_SYSTEM", "END_OF_TEXT", "END_OF_TURN", "SPECIAL_TOKENS", "train_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

DEFAULT_SYSTEM = "You are a helpful assistant."

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\n@SYSTEM@<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
""".replace("@SYSTEM@", DEFAULT_SYSTEM)


def train_tokenizer(corpus: Iterable[str], vocabulary_size: int, max_length: int) -> Qwen2Tokenizer:
    """Train on `corpus`; special tokens come last.

    Args:
        corpus: Texts like those the model will see.
        vocabulary_size: Upper bound of the number of tokens, special ones included.
        max_length: Longest sequence, in tokens.

    Raises:
        EngineUsageError: The bound leaves no room for all bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    num_ordinary = vocabulary_size - len(SPECIAL_TOKENS)
    if num_ordinary < len(alphabet):
        raise EngineUsageError(
            f"vocabulary_size={vocabulary_size}: expected {len(alphabet) + len(SPECIAL_TOKENS)} or more "
            "(all bytes and the special tokens)"
        )
    empty = Qwen2Tokenizer().backend_tokenizer  # splits words and digits like the family
    learner = Tokenizer(models.BPE())
    learner.normalizer = empty.normalizer
    learner.pre_tokenizer = empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=num_ordinary, min_frequency=2, show_progress=False, initial_alphabet=sorted(alphabet)
    )
    learner.train_from_iterator(_with_chat_words(corpus), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for token in SPECIAL_TOKENS:
        vocabulary[token] = len(vocabulary)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=cast(Any, [tuple(merge) for merge in learned["merges"]]),
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _with_chat_words(corpus: Iterable[str]) -> Iterator[str]:
    yield from corpus
    # Every prompt contains these words, so they get tokens of their own whatever the corpus.
    for text in (f"system\n{DEFAULT_SYSTEM}\n", "user\n", "assistant\n"):
        yield from (text,) * 1000
