from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, build
from torch.utils.flop_counter import FlopCounterMode

from harness.evaluate import likelihood
from harness.evaluate.head import tapped
from harness.evaluate.likelihood import Budget, Request, answer, batch_flops, can_share, plan
from harness.walk import cost
from harness.walk.probe import observe

WIDE = Budget(tokens=60, rows=1000)


def requests(longest: int = 20, seed: int = 0) -> list[Request]:
    """Contexts with one to four continuations of one to six tokens; some share all but the last."""
    draw = random.Random(seed)
    ids = lambda count: tuple(draw.choices(range(3, 60), k=count))  # noqa: E731
    made = []
    for number in range(12):
        context = ids(draw.randint(1, longest))
        made += [Request(context, ids(draw.randint(1, 6))) for _ in range(1 + number % 4)]
        made += [Request(context, ids(1)) for _ in range(3 * (number % 2))]
    draw.shuffle(made)
    return made


def plainly(model, asked):
    """One forward for each request, log-softmax over all of its logits, float64."""
    found = []
    for one in asked:
        ids = torch.tensor([one.context + one.continuation[:-1]])
        logits = model(ids, use_cache=False).logits[0, len(one.context) - 1 :].double()
        targets = torch.tensor(one.continuation)
        chosen = logits.log_softmax(-1).gather(1, targets[:, None]).sum().item()
        found.append((chosen, bool((logits.argmax(-1) == targets).all())))
    return found


def asked_at_once(model, asked, budget, share=True):
    answers, flops = {}, 0.0
    with tapped(model) as tap, torch.inference_mode():
        for batch in plan(asked, budget, share):
            some = answer(model, tap, asked, batch, budget)
            assert not answers.keys() & some.keys()
            answers |= some
            flops += batch_flops(model, batch, budget)
    return [answers[index] for index in range(len(asked))], flops


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_plain_forwards(family):
    model, asked = build(family), requests()
    assert can_share(model)
    with torch.no_grad():
        expected = plainly(model, asked)
        for budget in (WIDE, Budget(7, 1000), Budget(200, 3)):
            found, _ = asked_at_once(model, asked, budget)
            values = [value for value, _ in found]
            assert values == pytest.approx([value for value, _ in expected], rel=2e-5, abs=2e-5)
            assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("share", [False, True])
def test_soft_capped_logits_and_the_model_s_own_choices(tiny_model, share):
    model = tiny_model("gemma2")
    asked = []
    with torch.no_grad():
        for one in requests():
            ids = torch.tensor([one.context])
            top = model(ids).logits[0, -1].argmax().item()
            asked += [one, replace(one, continuation=(top,))]
        expected = plainly(model, asked)
        found, _ = asked_at_once(model, asked, WIDE, share)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], rel=2e-5)
    greedy = [one for _, one in found]
    assert greedy == [one for _, one in expected]
    assert set(greedy) == {True, False}


def test_a_cache_that_is_not_one_of_keys_and_values_is_not_shared(monkeypatch):
    model = build("llama")
    monkeypatch.setattr(
        likelihood, "DynamicCache", lambda config: type("Cache", (), {"layers": [object()]})
    )
    assert not can_share(model)
    asked = requests()
    assert all(batch.shared == 0 for batch in plan(asked, WIDE, share=False))


def test_every_token_is_read_once():
    """Four continuations of five tokens after contexts of forty: the context counts once."""
    draw = random.Random(0)
    asked = [
        Request(context, tuple(draw.choices(range(60), k=5)))
        for context in [tuple(draw.choices(range(60), k=40)) for _ in range(30)]
        for _ in range(4)
    ]
    batches = plan(asked, Budget(500, 1000), share=True)
    # The last token of a context is read with each continuation, its own last one never.
    assert sum(batch.tokens() for batch in batches) == 30 * (39 + 4 * 5)
    assert all(batch.tokens() <= 500 for batch in batches)
    alone = plan(asked, Budget(500, 1000), share=False)
    assert sum(batch.tokens() for batch in alone) == 30 * 4 * 44


def test_one_token_continuations_share_a_forward():
    asked = [Request((1, 2, 3), (choice,)) for choice in range(4)]
    (batch,) = plan(asked, WIDE, share=True)
    assert batch.tokens() == 3
    assert [row.requests for rows in batch.contexts for row in rows] == [[0, 1, 2, 3]]


def test_padding_is_little():
    draw = random.Random(1)
    asked = [
        Request(context, tuple(draw.choices(range(60), k=draw.randint(1, 25))))
        for context in [tuple(draw.choices(range(60), k=draw.randint(10, 60))) for _ in range(100)]
        for _ in range(4)
    ]
    budget = Budget(768, 1000)
    least = sum(len(context) for context in {one.context for one in asked})
    least += sum(len(one.continuation) - 1 for one in asked)
    read = 0
    for batch in plan(asked, budget, share=True):
        read += batch.shared * len(batch.contexts)
        for piece in batch.pieces(budget):
            read += len(piece) * (len(piece[0][1].ids) - batch.shared)
    assert read < 1.35 * least


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "falcon"])
def test_operations_are_those_that_torch_counts(family):
    model, asked = build(family), requests()
    observe(model)  # once for a model, and not to be counted
    counter = FlopCounterMode(display=False, custom_mapping={_FLASH: _attention})
    with counter:
        _, flops = asked_at_once(model, asked, WIDE)
    assert flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    ids = torch.zeros(2, 9, dtype=torch.int64)
    observe(model)  # once for a model, and not to be counted
    counter = FlopCounterMode(display=False, custom_mapping={_FLASH: _attention})
    with counter, torch.inference_mode():
        model(ids, use_cache=False)
    assert cost.forward_flops(model, 18, 9) + cost.head_flops(model, 18) == pytest.approx(
        counter.get_total_flops(), rel=1e-6
    )


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention(query, key, *_, **__):
    batch, heads, queries, width = query
    return 4 * batch * heads * queries * key[-2] * width
