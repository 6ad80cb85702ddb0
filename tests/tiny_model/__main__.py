"""Train, then write the model and the tickets it was not trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .corpus import shipped_heldout, write_heldout
from .export import PRECISIONS, write_gguf
from .network import Network, Shape
from .train import train


def trained(checkpoint: Path | None) -> tuple[Network, Tokenizer]:
    """The trained network, from the checkpoint where there is one already."""
    if checkpoint and checkpoint.exists():
        return _load(checkpoint)
    network, tokenizer = train()
    if checkpoint:
        state = {"weights": network.state_dict(), "tokenizer": tokenizer.to_str()}
        torch.save(state, checkpoint)
    return network, tokenizer


def _load(checkpoint: Path) -> tuple[Network, Tokenizer]:
    state = torch.load(checkpoint)
    network = Network(Shape())
    network.load_state_dict(state["weights"])
    return network, Tokenizer.from_str(state["tokenizer"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny_model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--precision", choices=PRECISIONS, default="q8_0")
    parser.add_argument(
        "--checkpoint", type=Path, help="keep the trained weights here, or export those kept"
    )
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    out: Path = arguments.out
    network, tokenizer = trained(arguments.checkpoint)
    write_gguf(out, network, tokenizer, arguments.precision)
    write_heldout(out.with_name(f"{out.stem}-heldout.jsonl"), shipped_heldout())


if __name__ == "__main__":
    main()
