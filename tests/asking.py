"""Questions in files, and tasks in lm-eval's format around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from harness.evaluate import catalogue

MEAN = {"aggregation": "mean", "higher_is_better": True}


def rows(count: int, first: int = 0) -> list[dict]:
    """Questions with three choices each, all of them different."""
    return [
        {"query": f"Q{n} what is {n}?", "choices": [f"{n}", f"a {n + 1}", "b"], "gold": n % 3}
        for n in range(first, first + count)
    ]


def jsonl(path: Path, content: list[dict]) -> Path:
    """``content`` as a file of questions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def choosing(folder: Path, name: str, splits: list[dict] | dict[str, list[dict]], **config: Any):
    """Writes a multiple-choice task into ``folder``; rows alone are its test split."""
    splits = splits if isinstance(splits, dict) else {"test": splits}
    files = {
        split: str(jsonl(folder / "data" / f"{name}-{split}.jsonl", content))
        for split, content in splits.items()
    }
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **MEAN}],
    }
    if not any(key.endswith("_split") for key in config):
        task["test_split"] = "test"
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | config))


def grouping(folder: Path, name: str, members: list[str], **config: Any) -> None:
    """Writes a group into ``folder``."""
    group = {"group": name, "task": members, **config}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))


def without_index(monkeypatch) -> None:
    """Keeps lm-eval's own index, which takes many seconds, from being read."""
    manager = catalogue.manager
    monkeypatch.setattr(catalogue, "manager", lambda include, defaults: manager(include, False))
