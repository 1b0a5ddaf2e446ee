"""Transforms to try, the operators that they find, and those as matrices."""

import torch
from grids import uniform

from harness.numerics.statistics import collect
from harness.transforms import awq, hadamard, orthogonal, rescale

WIDTHS = [1, 2, 7, 13, 96, 576, 1536]
ORTHOGONAL = {
    "hadamard": hadamard.Hadamard(),
    "hadamard8": hadamard.Hadamard(smallest=8, seed=3),
    "orthogonal": orthogonal.Orthogonal(),
}
SCALING = {"rescale": rescale.Rescale(), "awq": awq.AWQ()}
EVERY = [*ORTHOGONAL.values(), *SCALING.values()]
CHAINS = [
    {"rescale": rescale.Rescale(), "orthogonal": orthogonal.Orthogonal(sides="both")},
    {"awq": awq.AWQ(), "hadamard": hadamard.Hadamard(sides="both")},
    {"hadamard": hadamard.Hadamard(sides="output"), "awq": awq.AWQ()},
]
PLANS = [{name: one} for name, one in (ORTHOGONAL | SCALING).items()] + CHAINS


def operator(transform, width, dtype=torch.float64):
    """The T that a transform finds for inputs of one width, and a statistic of such inputs."""
    weight = torch.randn(4, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    inputs = torch.randn(50, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    statistics = collect(inputs * torch.linspace(0.2, 3, width).to(dtype), magnitude=True)
    return transform.find({"w": weight}, statistics, uniform(3)).inputs, statistics


def matrix(one, width, dtype=torch.float64):
    """T written out: the rows of A Tᵀ for A = I are T's columns."""
    return one.forward(torch.eye(width, dtype=dtype)).T
