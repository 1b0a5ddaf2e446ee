"""The papers' protocols: text and windows as literal twins of the scripts make them, and their names."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from runs import CONF, do, words
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harness.command import cli
from harness.command.cli import plan_jobs
from harness.inputs.corpora import HubText
from harness.settings.config import Config, ConfigError
from harness.trackers.flat import configuration

pytestmark = pytest.mark.long  # whole runs, or every composition

LENGTH = 16
DRAW = random.Random(0)
WORDS = ["the", "river", "is", "a", "stream", "of", "water", "prime", "<unk>", "42"]


def sentence(low: int, high: int) -> str:
    return " ".join(DRAW.choices(WORDS, k=DRAW.randint(low, high)))


# WikiText-2 has empty rows and headings, rows of PTB have no full stop, C4's are of any length.
WIKITEXT = [" = Title = \n" if n % 7 == 0 else "" if n % 3 else sentence(5, 20) for n in range(90)]
PTB = [sentence(3, 12) for _ in range(70)]
C4 = [sentence(2, 9) if n % 4 else sentence(9, 40) for n in range(1200)]
PILE = ["", "  \n", *(f" {sentence(1, 30)}\n" for _ in range(300))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins as jsonl files, named after the corpora."""
    made = tmp_path_factory.mktemp("texts")
    columns = {"wikitext2": "text", "ptb": "sentence", "c4": "text", "pile": "text"}
    for (name, column), rows in zip(columns.items(), (WIKITEXT, PTB, C4, PILE), strict=True):
        lines = [json.dumps({column: row}) for row in rows]
        (made / f"{name}.jsonl").write_text("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def starting(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that puts <s> before every text, as Llama's does."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer.backend_tokenizer).from_str(
            tiny_tokenizer.backend_tokenizer.to_str()
        ),
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


@pytest.fixture(params=["starting", "tiny_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def chosen(folder: Path, paper: str, corpora: tuple[str, ...], *more: str) -> Config:
    """``experiment=PAPER`` with local files in place of the hub's and short windows."""
    at = "eval.evaluators.perplexity.corpora"
    paths = [f"{at}.{name}.path={folder / f'{name}.jsonl'}" for name in corpora]
    paths += [f"calibration.path={folder / 'c4.jsonl'}", f"calibration.length={LENGTH}"]
    line = [f"experiment={paper}", f"eval.length={LENGTH}", "tracker=none", *paths, *more]
    return plan_jobs(CONF, line)[0]


def evaluated(config: Config, name: str, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    return config.evaluators["perplexity"].corpora[name].tokens(tokenizer, 0).ids


def cut(ids: list[int]) -> torch.Tensor:
    """What GPTQ's ``opt_eval`` cuts: ``numel // seqlen`` windows, one after the other."""
    count = len(ids) // LENGTH
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


def literal(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """``tokenizer(text).input_ids``: start token and all."""
    return list(tokenizer(text)["input_ids"])


def test_qep_s_texts_and_windows(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = chosen(folder, "qep_paper", ("wikitext2", "ptb", "c4"))
    expected = {
        "wikitext2": cut(literal(tokenizer, "\n\n".join(WIKITEXT))),
        "ptb": cut(literal(tokenizer, " ".join(PTB))),
        "c4": cut(literal(tokenizer, " ".join(C4[:1100]))[: 256 * LENGTH]),
    }
    assert len(expected["c4"]) == 256
    for name, windows in expected.items():
        assert torch.equal(evaluated(config, name, tokenizer), windows), name


def test_qep_s_c4_has_as_many_windows_as_1100_documents_fill(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [row[:5] for row in C4]
    lines = "\n".join(json.dumps({"text": row}) for row in rows)
    (tmp_path / "c4.jsonl").write_text(lines)
    at = "eval.evaluators.perplexity.corpora.c4.path"
    config = chosen(folder, "qep_paper", ("wikitext2", "ptb"), f"{at}={tmp_path / 'c4.jsonl'}")
    found = evaluated(config, "c4", tokenizer)
    assert torch.equal(found, cut(literal(tokenizer, " ".join(rows[:1100]))))
    assert len(found) < 256


def test_quantease_s_texts_and_windows(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = chosen(folder, "quantease_paper", ("wikitext2", "ptb"))
    assert list(config.evaluators["perplexity"].corpora) == ["wikitext2", "ptb"]
    expected = {
        "wikitext2": cut(literal(tokenizer, "\n\n".join(WIKITEXT))),
        "ptb": cut(literal(tokenizer, "\n\n".join(PTB))),
    }
    for name, windows in expected.items():
        assert torch.equal(evaluated(config, name, tokenizer), windows), name


def gptq_s_c4(tokenizer: PreTrainedTokenizerFast, seed: int, samples: int) -> torch.Tensor:
    """``get_c4`` of GPTQ and QEP, and QuantEase's ``get_c4_val``, as their scripts have it."""
    draw = random.Random(seed)
    windows = []
    for _ in range(samples):
        while True:
            at = draw.randint(0, len(C4) - 1)
            ids = literal(tokenizer, C4[at])
            if len(ids) >= LENGTH + 1:
                break
        first = draw.randint(0, len(ids) - LENGTH - 1)
        windows.append(ids[first : first + LENGTH])
    return torch.tensor(windows)


@pytest.mark.parametrize("paper", ["qep_paper", "quantease_paper"])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_calibration_windows_are_drawn_as_gptq_draws_them(
    paper: str, seed: int, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    names = ("wikitext2", "ptb")
    config = chosen(folder, paper, names, f"seed={seed}")
    found = config.calibration.tokens(tokenizer, config.seed)
    assert torch.equal(found.ids, gptq_s_c4(tokenizer, seed, 128))
    assert not len(found.heldout)


def test_awq_s_set_is_that_of_its_authors(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    more = ["method=awq", "calibration.awq.length=32", "calibration.awq.documents=40"]
    more += [f"calibration.awq.path={folder / 'pile.jsonl'}"]
    config = chosen(folder, "qep_paper", (), *more)
    samples: list[int] = []
    runs = 0
    for row in datasets.Dataset.from_dict({"text": PILE}).shuffle(seed=42):
        ids = literal(tokenizer, row["text"].strip())
        if len(ids) > 32 or not ids:
            continue
        samples += ids
        runs += 1
        if runs == 40:
            break
    expected = torch.tensor(samples[: len(samples) // 32 * 32]).view(-1, 32)
    assert torch.equal(config.own_calibration.tokens(tokenizer, 7).ids, expected)


def test_too_few_documents_are_counted(
    folder: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = {"path": str(folder / "c4.jsonl"), "name": "c4", "windows": 2}
    long = HubText(**options, preparation="gptq_documents", length=500)
    with pytest.raises(ValueError, match="c4: none of 1200 documents has more than 500 tokens"):
        long.tokens(tiny_tokenizer, 0)
    short = HubText(**options, preparation="awq_documents", documents=40, length=3)
    with pytest.raises(ValueError, match=r"\d+ of 1200 documents have at most 3 tokens; 40 are"):
        short.tokens(tiny_tokenizer, 0)
    few = HubText(**options | {"windows": 99}, preparation="awq_documents", documents=9, length=30)
    with pytest.raises(ValueError, match="2,970 are needed"):
        few.tokens(tiny_tokenizer, 0)
    for preparation, option in (("gptq_documents", "windows"), ("awq_documents", "documents")):
        with pytest.raises(ValueError, match=f"{option}=None: preparation={preparation} needs"):
            HubText("p", "c4", preparation=preparation)
    with pytest.raises(ValueError, match=r"documents=0 \(at least 1\)"):
        HubText("p", "c4", documents=0)


def hub(name: str) -> dict[str, Any]:
    """Where the corpora of a protocol come from, without any option changed."""
    config = plan_jobs(CONF, [f"experiment={name}", "model=llama2_7b", "method=awq"])[0]
    corpora = dict(config.evaluators["perplexity"].corpora)
    corpora["calibration"] = config.calibration
    if config.own_calibration is not None:
        corpora["awq"] = config.own_calibration
    return {
        key: (one.path, one.config, one.split, one.data_files, one.windows, one.length, one.bos)
        for key, one in corpora.items()
    }


def test_where_the_texts_come_from() -> None:
    wikitext = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", None, None, 2048, "first")
    validation = "en/c4-validation.00000-of-00008.json.gz"
    ptb = "ptb-text-only/ptb_text_only"
    assert hub("qep_paper") == {
        "wikitext2": wikitext,
        "ptb": (ptb, None, "test", "penn_treebank/test/*.parquet", None, 2048, "first"),
        "c4": ("allenai/c4", None, "validation", validation, 256, 2048, "first"),
        "calibration": ("allenai/c4", None, "train", "en/c4-train.00000-of-01024.json.gz", 128,
                        2048, "first"),
        "awq": ("mit-han-lab/pile-val-backup", None, "validation", None, None, 512, "first"),
    }  # fmt: skip
    assert hub("quantease_paper") == {
        "wikitext2": wikitext,
        "ptb": (
            ptb,
            None,
            "validation",
            "penn_treebank/validation/*.parquet",
            None,
            2048,
            "first",
        ),
        "calibration": ("allenai/c4", None, "validation", validation, 128, 2048, "first"),
    }


def test_the_tasks_and_the_correction() -> None:
    qep, large, quantease = (
        plan_jobs(CONF, [f"experiment={name}", f"model={model}"])[0]
        for name, model in (
            ("qep_paper", "llama2_7b"), ("qep_paper", "llama2_70b"), ("quantease_paper", "opt_1b3"),
        )
    )  # fmt: skip
    tasks = ("arc_easy", "arc_challenge", "piqa", "storycloze_2018", "lambada_openai")
    assert tuple(qep.evaluators["zeroshot"].tasks) == tasks
    assert tuple(quantease.evaluators["zeroshot"].tasks) == ("lambada_openai",)
    assert {one.evaluators["zeroshot"].fewshot for one in (qep, quantease)} == {0}
    layer = "model.layers.3"
    assert qep.qep.alpha == large.qep.alpha == 0.5 and qep.qep.damping == 1.0
    assert not qep.qep.corrects(f"{layer}.mlp.down_proj")
    assert qep.qep.corrects(f"{layer}.mlp.up_proj")
    assert not any(
        large.qep.corrects(f"{layer}.mlp.{one}") for one in ("gate_proj", "up_proj", "down_proj")
    )
    assert large.qep.corrects(f"{layer}.self_attn.o_proj")
    assert quantease.qep.alpha == 0


def test_every_evaluation_names_itself() -> None:
    for path in sorted((CONF / "eval").glob("*.yaml")):
        assert yaml.safe_load(path.read_text())["protocol"] == path.stem


def protocol(*more: str) -> str:
    return plan_jobs(CONF, ["model=llama2_7b", *more])[0].protocol


@pytest.mark.parametrize("name", ["default", "local", "none", "qep_paper", "quantease_paper"])
def test_a_protocol_as_written_has_its_name(name: str) -> None:
    assert protocol(f"eval={name}") == name
    assert protocol(f"eval={name}", "bits=2", "qep.alpha=0", "seed=3", "method=none") == name


CHANGES = [
    "eval.length=1024",
    "eval.windows=8",
    "eval.limit=100",
    "eval.fewshot=5",
    "eval.tasks=[piqa]",
    "eval.evaluators.perplexity.corpora.wikitext2.bos=every",
    "eval.evaluators.perplexity.corpora.wikitext2.path=other.jsonl",
    "eval.evaluators.perplexity.corpora.ptb.preparation=documents",
    "~eval.evaluators.perplexity.corpora.ptb",
    "~eval.evaluators.zeroshot",
]


@pytest.mark.parametrize("paper", ["qep_paper", "quantease_paper"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_protocol_with_anything_changed_has_a_star(change: str, paper: str) -> None:
    more = ["eval.windows=3"] if "documents" in change else []
    assert protocol(f"eval={paper}", change, *more) == f"{paper}*"


def test_what_changes_no_figure_changes_no_name() -> None:
    for word in ("batch_tokens=4096", "batch_size=8", "divergence=true"):
        assert protocol("eval=qep_paper", f"eval.{word}") == "qep_paper"
    assert (
        protocol("-m", "experiment=results") == "local*"
    )  # an experiment's changes count as well
    assert protocol("eval=text", "eval.path=F") == "text"  # nothing is fixed that could change
    assert protocol("eval=heldout", "calibration.holdout=4") == "heldout"
    assert protocol("eval=text", "eval.path=F", "eval.protocol=qep_paper") == "qep_paper*"
    with pytest.raises(ConfigError, match="did you mean 'qep_paper'"):
        protocol("eval=qep_paper", "eval.protocol=qep_papr")


def test_records_and_headers_say_it(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(tiny_folder, tmp_path, "method=rtn", "eval.divergence=false")
    assert cli.main(cli.run_job, CONF, line) == 0
    assert capsys.readouterr().out.count("protocol text") == 2  # full precision as well
    record = do(plan_jobs(CONF, line)[0])
    assert record.summary["protocol"] == "text"
    assert configuration(record)["protocol"] == "text"
