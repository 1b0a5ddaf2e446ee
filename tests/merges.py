"""A byte-pair tokenizer of given merges, with what is put around a text, and a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<pad>")
CHAT = (
    "{{ bos_token }}{% for one in messages %}[{{ one['role'] }}] {{ one['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def merging(
    merges: Sequence[tuple[str, str]] = (),
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    named: bool = True,
    chat: str | None = None,
) -> PreTrainedTokenizerFast:
    """Bytes, and what ``merges`` make of them, across words as well.

    Args:
        merges: pairs of pieces, a blank being ``Ġ``.
        before: special tokens put before a text.
        after: behind it.
        named: whether it has a start and an end token at all.
        chat: a template.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet, *("".join(one) for one in merges)]
    core = Tokenizer(models.BPE({one: at for at, one in enumerate(pieces)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if before or after:
        around = [(one, core.token_to_id(one)) for one in (*before, *after)]
        template = " ".join([*before, "$A", *after])
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    names = {"bos_token": "<s>", "eos_token": "</s>"} if named else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", **names)
    tokenizer.chat_template = chat
    return tokenizer
