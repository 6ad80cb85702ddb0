"""One GGUF through llama.cpp. The only file that knows llama_cpp.

A `Llama` is not thread-safe: everything here but `abort` runs in one thread. llama_cpp is imported
inside functions, so that a machine without it gets a reason and not a crash.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from policies.policy import Candidate
from shadow.stops import Cutter
from shadow.wire import Ask, Refusal

_MISSING: Final = "llama-cpp-python is not installed: pip install 'understudy[local]'"
_BATCH: Final = 512
_CONTEXT_STEP: Final = 256  # llama.cpp rounds n_ctx up; llama-cpp-python's arrays do not
_LOG: Final[deque[str]] = deque(maxlen=20)  # llama.cpp's complaints
_ERROR: Final = 4  # ggml's log level
# Written in ordinary tokens by a model whose template was exported wrongly.
_MARKERS: Final = (
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)


class Unusable(Exception):
    """The file can't be served; says why, for a person."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token's worth of an answer. `text` may be empty while a stop text may be starting.

    `margin`: how far the best logit was over the second. `finish` is set on the last piece, which
    may be no token (`tokens` counts those generated so far).
    """

    text: str
    margin: float | None
    tokens: int
    finish: str | None = None


class Flag(Protocol):
    """Set from any thread to stop a generation."""

    def is_set(self) -> bool: ...


def load(candidate: Candidate) -> Engine:
    """Check, hash and load the file. Raises Unusable."""
    path = Path(candidate.gguf)
    _check_file(path)
    llama_cpp = _library()
    try:
        sha256 = _sha256(path)
        llama = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=-(-candidate.context // _CONTEXT_STEP) * _CONTEXT_STEP,
            n_batch=_BATCH,
            n_threads=candidate.threads,
            # Not all cores for the prefill: threads wait for each other at every layer, and at nice
            # 19 next to one busy core a triage request took 187 ms on two threads, 7 ms on one.
            n_threads_batch=candidate.threads,
            verbose=False,
        )
    except Exception as error:  # whatever a broken file makes of the binding is a reason
        raise Unusable(f"{path}: llama.cpp can't load it: {_complaint(error)}") from None
    return Engine(llama_cpp, llama, sha256, candidate.context)


def _check_file(path: Path) -> None:
    """What can be said in plain words is, before llama.cpp says it in its own."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Unusable(f"{path}: is a directory, not a GGUF file")
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(f"{path}: is not a regular file")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Unusable(f"{path}: can't be read: {error.strerror}") from None
    if not magic:
        raise Unusable(f"{path}: is empty")
    if magic != b"GGUF":
        raise Unusable(f"{path}: is not a GGUF file, it starts with {magic!r}")


def _library() -> Any:
    # Read by OpenMP when the library is loaded: a spinning barrier loses 10 to 20 fold as soon as
    # the app next door wants the core.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        import llama_cpp
    except ImportError:
        raise Unusable(_MISSING) from None
    except Exception as error:  # a shared library that does not fit this machine
        raise Unusable(f"llama-cpp-python can't be loaded: {error}") from None
    llama_cpp.llama_log_set(_keep_log(llama_cpp), ctypes.c_void_p(0))
    return llama_cpp


def _keep_log(llama_cpp: Any) -> Any:
    """Silence on stderr; the newest errors are kept as reasons."""
    global _log_callback  # the C side holds no reference

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _data: Any) -> None:
        if level == _ERROR:
            _LOG.append(text.decode("utf-8", "replace").strip())

    _log_callback = keep
    return keep


_log_callback: Any = None


def _complaint(error: Exception) -> str:
    lines = [line for line in _LOG if line]
    # The first complaint is the cause; those after it say that loading failed.
    return lines[0] if lines else str(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Engine:
    """A loaded model. `context`: most tokens of prompt and answer together."""

    def __init__(self, llama_cpp: Any, llama: Any, sha256: str, context: int) -> None:
        self._lib, self._llama, self.sha256 = llama_cpp, llama, sha256
        # Past what it was trained on a model babbles, whatever the policy allows.
        trained = int(llama_cpp.llama_model_n_ctx_train(llama.model)) or context
        self.context = min(context, trained)
        self._vocab = llama_cpp.llama_model_get_vocab(llama.model)
        self._template, self._end = self._formatter()
        self._flag: Flag | None = None
        # Kept, because the C side holds no reference.
        self._callback = llama_cpp.ggml_abort_callback(self._aborted)
        llama_cpp.llama_set_abort_callback(llama.ctx, self._callback, None)

    def _formatter(self) -> tuple[Any, str]:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._llama.metadata.get("tokenizer.chat_template")
        if not template:
            raise Unusable("the GGUF file holds no chat template (tokenizer.chat_template)")
        end, begin = (
            self._token_text(self._llama.token_eos()),
            self._token_text(self._llama.token_bos()),
        )
        try:
            return Jinja2ChatFormatter(template=template, eos_token=end, bos_token=begin), end
        except Exception as error:  # Jinja's own, of many kinds
            raise Unusable(f"the GGUF file's chat template is broken: {error}") from None

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def _aborted(self, _data: object) -> bool:
        return self._flag is not None and self._flag.is_set()

    def prompt(self, ask: Ask) -> list[int]:
        """The request as tokens. Raises Refusal when the model can't take it."""
        for message in ask.messages:
            self._refuse_control_tokens(message["content"])
        try:
            text = self._template(messages=list(ask.messages)).prompt
        except Exception as error:  # templates refuse roles and orders by raising
            raise Refusal("ineligible", f"the model's chat template: {error}") from None
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=False, special=True)
        if len(tokens) + 1 > self.context:
            raise Refusal(
                "ineligible", f"{len(tokens)} prompt tokens leave no room in {self.context}"
            )
        return tokens

    def _refuse_control_tokens(self, text: str) -> None:
        # In a prompt they would end the user's turn: to the upstream they are mere text.
        data = text.encode()
        plain = self._llama.tokenize(data, add_bos=False, special=False)
        if plain != self._llama.tokenize(data, add_bos=False, special=True):
            raise Refusal("ineligible", "a message holds control tokens of the model")

    def answer(self, ask: Ask, tokens: list[int], limit: int, flag: Flag) -> Iterator[Piece]:
        """The pieces of an answer of at most `limit` tokens.

        When `flag` is set it ends early, within milliseconds, without a last piece.
        """
        grammar = self._grammar(ask.schema)
        self._flag = flag
        try:
            yield from self._pieces(ask, self._generate(ask, tokens, grammar), limit)
        except RuntimeError:
            # An aborted decode; what the context holds of it is unknown.
            self._llama.reset()
            if not flag.is_set():
                raise
        finally:
            self._flag = None

    def _generate(self, ask: Ask, tokens: list[int], grammar: Any) -> Iterator[int]:
        seed = secrets.randbits(32) if ask.seed is None else ask.seed
        self._llama.set_seed(seed & 0xFFFFFFFF)
        generated: Iterator[int] = self._llama.generate(
            tokens,
            temp=ask.temperature,
            top_p=ask.top_p,
            top_k=0,  # OpenAI cuts by probability only
            min_p=0.0,
            frequency_penalty=ask.frequency_penalty,
            presence_penalty=ask.presence_penalty,
            grammar=grammar,
        )
        return generated

    def _pieces(self, ask: Ask, generated: Iterator[int], limit: int) -> Iterator[Piece]:
        cutter = Cutter((*ask.stop, *_MARKERS))
        for count, token in enumerate(generated, start=1):
            if self._aborted(None):
                return
            margin = self._margin()
            if self._lib.llama_vocab_is_eog(self._vocab, token):
                yield Piece(cutter.flush(), margin, count - 1, "stop")
                return
            text = cutter.feed(self._bytes(token))
            if cutter.stopped or count >= limit:
                finish = "stop" if cutter.stopped else "length"
                yield Piece(text + cutter.flush(), margin, count, finish)
                return
            yield Piece(text, margin, count)

    def _margin(self) -> float:
        """How far the best logit of the newest row is over the second."""
        import numpy

        size = self._llama.n_vocab()
        row = numpy.ctypeslib.as_array(
            self._lib.llama_get_logits_ith(self._llama.ctx, -1), shape=(size,)
        )
        best = int(row.argmax())
        others = [part.max() for part in (row[:best], row[best + 1 :]) if part.size]
        return float(row[best] - max(others))

    def _bytes(self, token: int) -> bytes:
        # The binding's own detokenize has 32 bytes for a token; some are longer.
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            written = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    def _grammar(self, schema: str | None) -> Any:
        if schema is None:
            return None
        from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar, json_schema_to_gbnf

        try:
            text = JSON_GBNF if schema == "{}" else json_schema_to_gbnf(schema)
        except Exception as error:  # the translator asserts, and raises whatever it meets
            raise Refusal("ineligible", f"response_format: {error}") from None
        self._prove(text)
        return LlamaGrammar.from_string(text, verbose=False)

    def _prove(self, grammar: str) -> None:
        # A grammar that llama.cpp can't read would be a null pointer in the sampler's chain.
        sampler = self._lib.llama_sampler_init_grammar(self._vocab, grammar.encode(), b"root")
        if not sampler:
            raise Refusal("ineligible", "response_format: llama.cpp can't read its grammar")
        self._lib.llama_sampler_free(sampler)
