"""A corpus to choose options on: the windows that calibration holds out."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harness.inputs.corpora import Corpus, Tokens


@dataclass(frozen=True)
class HeldOut:
    """The windows that another corpus holds out: options chosen on them are chosen unseen.

    They begin as that corpus' other windows do: with another ``bos`` they would be cut at other
    places and share tokens with windows that its statistics have.

    Args:
        corpus: the calibration corpus, with ``holdout``.
        seed: of the run, so that the windows are those that its statistics do not have.
    """

    corpus: Corpus
    seed: int
    name: str = "heldout"

    def check(self) -> None:
        """Checks the corpus, and that it holds out something."""
        self.corpus.check()
        if not getattr(self.corpus, "holdout", 0):
            raise ValueError("corpus heldout: no windows are held out; set calibration.holdout")

    def tokens(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Tokens:
        """The held-out windows, whatever ``seed`` an evaluation has."""
        whole = self.corpus.tokens(tokenizer, self.seed)
        kept = whole.heldout
        return Tokens(kept, kept[:0], self.name, whole.start, whole.note)
