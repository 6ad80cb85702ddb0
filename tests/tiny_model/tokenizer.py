"""A byte-level BPE of 1,024 entries that llama.cpp splits exactly as `tokenizers` does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, START, PAD = "<|bos|>", "<|im_end|>", "<|im_start|>", "<|pad|>"
SPECIALS = (BOS, EOS, START, PAD)
BOS_ID, EOS_ID, START_ID, PAD_ID = range(4)

# llama.cpp's pattern for `tokenizer.ggml.pre = qwen2`. It splits digits one by one, which is what
# makes order ids copyable.
PRE_TOKENIZER = "qwen2"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# llama-cpp-python does not add a BOS to what a Jinja template printed: the template prints it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prompt(system: str, user: str) -> str:
    """What the chat template makes of a system and a user message."""
    turns = f"{START}system\n{system}{EOS}\n{START}user\n{user}{EOS}\n"
    return f"{BOS}{turns}{START}assistant\n"


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIALS],
        # llama.cpp needs a token for every byte, seen in training or not.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer's tables as a GGUF file lists them."""

    tokens: list[str]
    merges: list[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        model = json.loads(tokenizer.to_str())["model"]
        return cls(
            tokens=sorted(model["vocab"], key=model["vocab"].__getitem__),
            merges=[" ".join(pair) for pair in model["merges"]],
        )
