"""Write the trained network and its tokenizer as one GGUF file llama.cpp loads."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from tokenizers import Tokenizer

from .network import Network, Shape
from .tokenizer import BOS_ID, CHAT_TEMPLATE, EOS_ID, PAD_ID, PRE_TOKENIZER, SPECIALS, Vocabulary

NAME = "triage-tiny"

_PRECISIONS = {
    "f32": (LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
    "f16": (LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
    "q8_0": (LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0),
}
PRECISIONS = tuple(_PRECISIONS)


def write_gguf(path: Path, network: Network, tokenizer: Tokenizer, precision: str) -> None:
    file_type, tensor_type = _PRECISIONS[precision]
    writer = GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    _add_shape(writer, network.shape)
    _add_tokenizer(writer, Vocabulary.of(tokenizer))
    _add_tensors(writer, network, tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([_token_type(token) for token in vocabulary.tokens])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_pad_token_id(PAD_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _token_type(token: str) -> TokenType:
    # Only control tokens are recognised inside a prompt, and they are never printed.
    return TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL


def _add_tensors(writer: GGUFWriter, network: Network, tensor_type: GGMLQuantizationType) -> None:
    for name, weights in network.state_dict().items():
        array = weights.float().numpy()
        # llama.cpp wants one-dimensional tensors as F32.
        kind = GGMLQuantizationType.F32 if array.ndim == 1 else tensor_type
        writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
