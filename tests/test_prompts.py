"""Prompts and continuations as tokens, question by question against lm-eval's own ``HFLM``."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from merges import merging

from harness.evaluate.base import silent
from harness.evaluate.lm import TrackedLM
from harness.evaluate.prompts import Prompts
from harness.inputs.tokenizing import put_before, start_of

MERGES = [("a", "b"), (":", "Ġ"), (":Ġ", "C"), ("Ġ", "a"), ("Ġa", "b"), ("c", "Ċ")]
PROMPTS = [
    "Q: ab?",
    "A long one. " * 4 + "Answer:",
    "ends in a blank ",
    "two lines\n\n",
    "\n",
    " ",
    "",
]
CHOICES = [" a", " ab", " ab a", "ab", " C", " C D", "\nC", "x", "ab" * 9]


def asked(pairs, kind="loglikelihood"):
    return [
        Instance(kind, {}, pair, index, metadata=("task", index, 1))
        for index, pair in enumerate(pairs)
    ]


def prompts(tokenizer, bos):
    return Prompts(tokenizer, start_of(bos, tokenizer).ids)


def ours(model, tokenizer, bos="auto"):
    return TrackedLM(model, tokenizer, "auto", silent, bos)


def equal(found, expected):
    assert [value for value, _ in found] == pytest.approx(
        [value for value, _ in expected], rel=1e-5, abs=1e-5
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("before", [[], ["<s>"], ["<pad>", "<s>"]])
def test_every_prompt_and_choice_is_hflm_s(tiny_model, before):
    model, tokenizer = tiny_model(), merging(MERGES, before)
    twin = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    pairs, left = [], 0
    for prompt, choice in itertools.product(PROMPTS, CHOICES):
        empty = bool(prompt) and not all(twin._encode_pair(prompt, choice))
        if not (empty or (len(before) > 1 and not prompt)):  # HFLM knows one start token
            pairs.append((prompt, choice))
        left += empty
    assert left and len(pairs) > 40
    found = ours(model, tokenizer).loglikelihood(asked(pairs))
    equal(found, twin.loglikelihood(asked(pairs), disable_tqdm=True))


@pytest.mark.parametrize("before", [[], ["<s>"]])
@pytest.mark.parametrize("bos", ["none", "every", "auto", "first"])
def test_start_tokens_are_those_of_hflm_with_and_without(tiny_model, before, bos):
    """``every`` is what a tokenizer that puts it there by itself does; ``none`` what HFLM can switch off."""
    model, tokenizer = tiny_model(), merging(MERGES, before)
    with_start = merging(MERGES, ["<s>"])
    twin = {
        "none": HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False),
        "every": HFLM(pretrained=model, tokenizer=with_start),
    }.get(bos, HFLM(pretrained=model, tokenizer=tokenizer))
    pairs = [(prompt, choice) for prompt in ("Q: ab?", "<s>Q", "ab ") for choice in (" x", "ab")]
    expected = twin.loglikelihood(asked([*pairs, ("", "ab")]), disable_tqdm=True)
    equal(ours(model, tokenizer, bos).loglikelihood(asked([*pairs, ("", "ab")])), expected)
    starts = [ids.count(0) for ids in prompts(tokenizer, bos).encoded(["Q", "<s>Q"])]
    assert starts == [int(bos == "every" or (bos != "none" and bool(before))), 1]


def test_the_start_token_comes_once_wherever_it_comes_from():
    for before in ([], ["<s>"], ["<pad>", "<s>"]):
        tokenizer = merging(MERGES, before)
        start = put_before(tokenizer)
        assert start == tuple(tokenizer.convert_tokens_to_ids(before))
        text = "".join(before)
        (plain, brought) = prompts(tokenizer, "auto").encoded(["Q", f"{text}Q"])
        assert plain == brought == (*start, *tokenizer.encode("Q", add_special_tokens=False))
        pairs = prompts(tokenizer, "auto").pairs(
            [("Q", " a"), (f"{text}Q", " a"), ("", " a")], [0, 1, 2]
        )
        assert [one.context[: len(start)] for one in pairs] == [start] * 3
        assert not any(set(start) & set(one.continuation) for one in pairs)
    assert prompts(merging(), "every").start == (0,)
    with pytest.raises(ValueError, match="bos='every': the tokenizer has no start token"):
        prompts(merging(named=False), "every")
    with pytest.raises(ValueError, match="neither a start nor an end token"):
        prompts(merging(named=False), "auto").pairs([("", "a")], [0])


def test_where_nothing_is_left_of_a_choice_all_of_the_question_are_scored_alone(tiny_model):
    """In ``HFLM`` it always wins; the same question with other letters is answered as there."""
    model, tokenizer = tiny_model(), merging(MERGES)
    lm = ours(model, tokenizer)
    letters = [("Answer:", f" {one}") for one in "ABCDABD"]
    requests = [
        Instance("loglikelihood", {}, pair, index, metadata=("task", index // 4, 1))
        for index, pair in enumerate(letters)
    ]
    found = lm.loglikelihood(requests)
    assert lm.spanned == {"task": 7}
    prompt = tokenizer.encode("Answer:")
    for (_, choice), (value, _) in zip(letters[:4], found[:4], strict=True):
        ids = tokenizer.encode(choice)
        assert len(ids) == 2
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
        assert value == pytest.approx(chosen, rel=1e-5)
    twin = HFLM(pretrained=model, tokenizer=tokenizer)
    equal(found[4:], twin.loglikelihood(requests[4:], disable_tqdm=True))
    assert twin.loglikelihood(requests[:4], disable_tqdm=True)[2] == (0.0, True)


@given(
    context=st.text("ab C:\n", max_size=8),
    choice=st.text("ab C:\n", min_size=1, max_size=4),
    before=st.sampled_from([(), ("<s>",)]),
    after=st.sampled_from([(), ("</s>",)]),
)
@settings(max_examples=200, deadline=None)
def test_no_text_is_lost_and_none_comes_from_elsewhere(context, choice, before, after):
    """Where no token is shared the tokens are those of the joined text; never is one side empty."""
    tokenizer = merging(MERGES, before, after)
    (pair,) = prompts(tokenizer, "auto").pairs([(context, choice)], [0])
    assert pair.context and pair.continuation
    if context.strip() and not pair.spanned:
        whole = tokenizer.encode(context + choice, add_special_tokens=False)
        start = [0] * len(before)
        assert [*pair.context, *pair.continuation] == [*start, *whole]
    assert 1 not in pair.continuation  # what is put behind a text


def test_an_empty_choice_is_refused(tiny_model):
    lm = ours(tiny_model(), merging())
    with pytest.raises(ValueError, match="task task, question 2: a continuation of 0 tokens"):
        lm.loglikelihood(asked([("Q", "a"), ("Q", "")]))


def test_tokens_that_the_model_does_not_know_are_refused(tiny_model):
    more = merging([(f"{one}", f"{other}") for one in "abcdefgh" for other in "qrstuvwxyz"])
    with pytest.raises(ValueError, match="token id 338, but the model has .* 0 to 319"):
        ours(tiny_model(), more).loglikelihood(asked([("Q", "hz")]))


@pytest.mark.parametrize("before", [[], ["<s>"]])
def test_too_long_prompts_lose_tokens_on_the_left_but_not_the_start(tiny_model, before):
    model, tokenizer = tiny_model(), merging(before=before)
    model.config.max_position_embeddings = 16
    lm = ours(model, tokenizer)
    pairs = [("x" * 5 + "ab" * 10, " ab"), ("short", " ab"), ("y" * 40, " a")]
    found = lm.loglikelihood(asked(pairs))
    assert lm.cut == {"task": 2}
    if before:  # HFLM cuts the start token away: hand it the prompts that are left
        pairs = [(f"b{'ab' * 6}", " ab"), ("short", " ab"), ("y" * 14, " a")]
    twin = HFLM(pretrained=model, tokenizer=tokenizer)
    equal(found, twin.loglikelihood(asked(pairs), disable_tqdm=True))
    with pytest.raises(ValueError, match="question 1: a continuation of 17 tokens .*1 to 16 can"):
        lm.loglikelihood(asked([("x", "y" * 17)]))


@pytest.mark.parametrize("before", [[], ["<s>"]])
def test_whole_texts_are_hflm_s(tiny_model, before):
    """HFLM predicts the start token too where the tokenizer puts one; without it the figures are ours."""
    model, tokenizer = tiny_model(), merging(MERGES, before)
    model.config.max_position_embeddings = 16
    texts = [("ab C",), ("a text of more than sixteen tokens, in windows" * (not before),), ("",)]
    twin = HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False, batch_size=2)
    found = ours(model, tokenizer).loglikelihood_rolling(asked(texts, "loglikelihood_rolling"))
    expected = twin.loglikelihood_rolling(asked(texts, "loglikelihood_rolling"), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[2] == 0


def test_every_window_of_a_long_text_begins_with_the_start_token():
    text = "a text of more than sixteen tokens"
    made = prompts(merging(before=["<s>"]), "auto")
    windows = made.windows(text, 16)
    assert len(windows) == 3
    assert all(one.context[0] == 0 for one in windows)
    assert all(len(one.context) + len(one.continuation) <= 17 for one in windows)
    predicted = [token for one in windows for token in one.continuation]
    assert predicted == merging().encode(text)


@pytest.mark.parametrize("after", [[], ["</s>"]])
@pytest.mark.parametrize("before", [[], ["<s>"]])
def test_generated_texts_are_hflm_s(tiny_model, before, after):
    """A token put behind every text is left out: there HFLM's twin is the tokenizer without it."""
    model = tiny_model()
    options = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    prompts_ = [("Q: ab", options), ("a longer prompt", options), ("<s>ab", options)]
    lm = ours(model, merging(MERGES, before, after))
    twin = HFLM(pretrained=model, tokenizer=merging(MERGES, before), batch_size=1)
    expected = twin.generate_until(asked(prompts_, "generate_until"), disable_tqdm=True)
    assert any(expected)
    assert lm.generate_until(asked(prompts_, "generate_until")) == expected
