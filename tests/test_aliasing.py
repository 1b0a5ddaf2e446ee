"""Grids of one group, or of one row, whose scale and zero must not share memory with anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import quantize_layer

METHODS: list[dict[str, Any]] = [
    {"method": "rtn"},
    {"method": "gptq"},
    {"method": "gptq", "act_order": True},
    {"method": "gptq", "fresh_groups": True},
    {"method": "gptaq"},
    {"method": "qronos"},
    {"method": "quip", "transform": "none", "range": "minmax"},
    {"method": "quantease"},
    {"method": "quantease", "init": "gptq"},
    {"method": "quantease", "outliers": {"fraction": 0.05}},
    {"method": "qqa", "steps": 20},
]


def layer() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(24, 32, generator=draw), torch.randn(80, 32, generator=draw)


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_one_group_is_a_grid_a_row(options: dict[str, Any]) -> None:
    weight, inputs = layer()
    plain = quantize_layer(weight, inputs, bits=3, **options)
    grouped = quantize_layer(weight, inputs, bits=3, group_size=32, **options)
    assert torch.equal(plain.scales, grouped.scales)
    assert torch.equal(plain.weight, grouped.weight)
    assert not torch.equal(plain.scales, plain.grid.zero)


@pytest.mark.parametrize("options", METHODS[1:6], ids=str)
@pytest.mark.parametrize("format", ["int", "gauss"])
def test_one_row_is_rounded_as_among_others(options: dict[str, Any], format: str) -> None:
    weight, inputs = layer()
    options = {**options, "format": format, "bits": 4, "group_size": 8}
    several = quantize_layer(weight, inputs, **options)
    alone = quantize_layer(weight[:1], inputs, **options)
    assert torch.equal(alone.codes[0], several.codes[0])
    torch.testing.assert_close(alone.weight[0], several.weight[0], rtol=1e-5, atol=1e-7)


def test_a_last_chunk_of_one_row_is_no_other_on_any_number_of_threads() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(65, 32, generator=draw), torch.randn(80, 32, generator=draw)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(quantize_layer(weight, inputs, method="gptq", bits=4, group_size=8))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0].codes, found[1].codes)


@pytest.mark.parametrize("format", ["int", "nf4", "gauss", "midrise", "fp4"])
@pytest.mark.parametrize("scales", ["float16", "float32"])
def test_what_is_zero_stays_next_to_nothing(format: str, scales: str) -> None:
    weight, inputs = layer()
    weight[3], weight[5, 8:16] = 0, 0
    found = quantize_layer(
        weight, inputs, method="rtn", bits=4, group_size=8, format=format, scales=scales
    ).weight
    assert found[3].abs().max() <= 1e-7 and found[5, 8:16].abs().max() <= 1e-7
    assert found[4].abs().max() > 0.1


def test_outliers_of_inputs_that_never_were_active_are_nothing_special() -> None:
    weight, inputs = layer()
    found = quantize_layer(
        weight, 0 * inputs, method="quantease", bits=3, outliers={"fraction": 0.05}
    )
    assert found.local_error == 0 and found.weight.isfinite().all()


def test_outliers_and_groups_that_do_not_divide_are_one_line() -> None:
    weight, inputs = layer()
    with pytest.raises(ValueError, match="group_size=7 does not divide the 32 input columns"):
        quantize_layer(
            weight, inputs, method="quantease", bits=3, group_size=7, outliers={"fraction": 0.05}
        )


def test_a_transform_named_twice_is_refused() -> None:
    weight, inputs = layer()
    with pytest.raises(ValueError, match="hadamard stands there twice"):
        quantize_layer(weight, inputs, bits=3, transform=["hadamard", "hadamard"])
