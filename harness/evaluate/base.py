"""What an evaluator is: it measures a model and returns plain numbers.

An evaluator is a frozen dataclass in a file of its own; ``conf/eval/*.yaml`` lists evaluators by
``_target_``. Metric keys are ``metric/dataset``, samples are per window or per question, so that two
runs can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from harness.inputs.corpora import Tokens
from harness.records.cache import Cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
Say = Callable[[str], None]  # prints one line
SEED = 0  # of what an evaluator samples: runs of all seeds are measured on the same


class Track(Protocol):
    """Shows progress through an iterable: ``for batch in track(batches, "perplexity")``."""

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """Yields ``items``; ``total`` where they have no length."""
        ...


def silent(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """A :class:`Track` that shows nothing."""
    return items


def unsaid(line: str) -> None:
    """A :data:`Say` that prints nothing."""


@dataclass(frozen=True)
class Context:
    """What an evaluator may use besides the model.

    Args:
        model_hash: content hash of the full-precision checkpoint, the key for what depends on it.
        full_precision: whether the model at hand is the unquantised one.
        cache: what can be computed again; entries found there stay while the run lasts.
        track: progress display.
        say: prints what a person has to know of a measurement.
    """

    model_hash: str
    full_precision: bool
    cache: Cache
    track: Track = silent
    say: Say = unsaid


@dataclass(frozen=True)
class Evaluation:
    """Metrics ``metric/dataset`` -> number, samples per window or question, hashes and tokens used.

    ``better`` says of what comes before the slash whether lower or higher is better, where that is
    none of :data:`harness.records.record.METRICS`; tables and the dashboard show it then as the others.
    """

    metrics: Mapping[str, float]
    samples: Mapping[str, list[float]] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    flops: float = 0.0
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    better: Mapping[str, Literal["lower", "higher"]] = field(default_factory=dict)


class ReferenceMissing(RuntimeError):
    """What was kept of the full-precision model is not there; its evaluation has to run again."""


class Evaluator(Protocol):
    """Measures a model."""

    def check(self) -> None:
        """Raises ValueError, in one line, for anything that would fail later; costs no compute."""
        ...

    def datasets(self) -> Sequence[str]:
        """What it measures on, by the names in metric keys and of hashes."""
        ...

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Tokens]:
        """The token windows that it reads, by corpus; what it makes of tasks is not among them.

        Raises:
            ValueError: a corpus holds too few tokens, or can't have the start tokens asked for.
        """
        ...

    def missing(self, tokenizer: PreTrainedTokenizerBase, context: Context) -> list[str]:
        """What the full-precision model has to be measured on again before, mostly nothing."""
        ...

    def flops(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, full_precision: bool
    ) -> float:
        """The floating-point operations that :meth:`evaluate` will report, from shapes alone.

        0 where they are not known before; a dry run says so.
        ``model`` may be without weights, on the meta device.
        """
        ...

    def evaluate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Evaluation:
        """Measures ``model``, which stays as it is."""
        ...


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Makes all ``checks``, so that a person learns of everything that is missing at once.

    Raises:
        ValueError: what each of those that raise one says, in one line.
    """
    found = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    if found:
        raise ValueError("; ".join(dict.fromkeys(found)))
