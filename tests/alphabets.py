"""Tokenizers of every kind, built from their vocabularies: with and without a start token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

START, END, PAD = "<s>", "</s>", "<pad>"
MASK = "<mask>"  # a second token that some tokenizers put before a text
SPECIAL = (START, END, PAD, MASK)


def a_byte_a_token(
    before: Sequence[str] = (), after: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Every byte is a token; ``before`` and ``after`` are put around each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({one: at for at, one in enumerate([*SPECIAL, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return _named(core, before, after)


def a_word_a_token(words: Sequence[str], before: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Every word, however long, is a token."""
    vocabulary = {one: at for at, one in enumerate([*SPECIAL, "<unk>", *sorted(set(words))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _named(core, before)


def pieces_or_bytes(pieces: Sequence[str], before: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """SentencePiece's kind: the likeliest pieces of a text that is not cut before, else bytes."""
    scored = [(one, 0.0) for one in (*SPECIAL, "<unk>")]
    scored += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    scored += [(one, -1.0 - at / 100) for at, one in enumerate(sorted(set(pieces)))]
    core = Tokenizer(models.Unigram(scored, unk_id=len(SPECIAL), byte_fallback=True))
    return _named(core, before)


def whole_words_or_nothing(
    pieces: Sequence[str], before: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """WordPiece: a word of more than a hundred characters is one unknown token."""
    known = dict.fromkeys([*SPECIAL, "[UNK]", *pieces, *(f"##{one}" for one in pieces)])
    core = Tokenizer(models.WordPiece({one: at for at, one in enumerate(known)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _named(core, before)


def _named(
    core: Tokenizer, before: Sequence[str] = (), after: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    if before or after:
        around = [(one, core.token_to_id(one)) for one in (*before, *after)]
        template = " ".join([*before, "$A", *after])
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, pad_token=PAD
    )
