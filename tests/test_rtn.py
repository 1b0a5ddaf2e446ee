import pytest
import torch
from reference import golden

from harness import quantize_layer


@pytest.mark.parametrize("name", ["rtn_s_seed121", "rtn_l_seed122", "rtn_s_seed123_onesided"])
def test_golden(name):
    arrays = golden(name)
    inputs = torch.randn(8, arrays["W"].shape[1])
    for key in [key for key in arrays if key.startswith("gptq_Q__")]:
        bits, size = (int(part[1:]) for part in key.removeprefix("gptq_Q__").split("_"))
        group = None if size < 0 else size
        layer = quantize_layer(
            arrays["W"], inputs, method="rtn", bits=bits, group_size=group, scales="float32"
        )
        torch.testing.assert_close(layer.weight, arrays[key], rtol=1e-5, atol=1e-7)


def test_the_two_grids_of_the_authors_differ_for_rows_of_one_sign_only():
    two_sided, one_sided = golden("rtn_s_seed121"), golden("rtn_s_seed123_onesided")
    for key in [key for key in two_sided if key.startswith("gptq_Q__b3")]:
        other = key.replace("gptq", "awq")
        torch.testing.assert_close(two_sided[key], two_sided[other])
        signed = one_sided["W"].amin(dim=1) * one_sided["W"].amax(dim=1) >= 0
        different = (one_sided[key] - one_sided[other]).abs().amax(dim=1) > 1e-5
        if key.endswith("g-1"):
            assert not different[~signed].any()
            assert different[signed].any()
