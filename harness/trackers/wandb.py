"""Weights & Biases mirrors the record: config, scalars, tables, curves over depth.

Offline runs need no account; ``wandb sync`` uploads them later. The record on disk does not depend on
any of this: an unreachable server turns the mirror offline, with a line that says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.record import Record

HISTOGRAM_BINS = 64
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run per run; ``mode=offline`` writes to ``<results>/<set>/wandb`` and needs no network.

    Args:
        mode: offline, online (needs an account) or disabled.
        project: W&B project.
        entity: W&B user or team; None is the account's default.
        group: W&B group; None is the set of results.
        timeout: seconds to wait for the server before the mirror goes offline.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "qep-bench"
    entity: str | None = None
    group: str | None = None
    timeout: float = 30.0
    _live: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def start(self, record: Record, directory: Path) -> None:
        """Opens the W&B run."""
        import wandb

        if self.mode == "disabled":
            return
        folder = directory.parent
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            init_timeout=self.timeout,
        )
        options: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "group": self.group or folder.name,
            "name": record.run,
            "config": {**record.summary, "recipe": record.config},
            "tags": [str(record.summary["model"]), str(record.summary["method"])],
            "dir": str(folder),
            "settings": settings,
            "reinit": "finish_previous",
        }
        # A sweep's agent chooses the mode of its runs.
        mode = "online" if "WANDB_SWEEP_ID" in os.environ else self.mode
        try:
            run = wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            logger.warning(
                "W&B is out of reach (%s): the mirror is offline", str(error).splitlines()[0]
            )
            run = wandb.init(mode="offline", **options)
        run.define_metric("block")
        run.define_metric("depth/*", step_metric="block")
        self._live.update(run=run, layers=[], blocks=[])

    def layer(self, row: Mapping[str, Any]) -> None:
        """Keeps the row for the table."""
        if self._live:
            self._live["layers"].append({k: v for k, v in row.items() if k != "traces"})

    def block(self, row: Mapping[str, Any]) -> None:
        """Adds a point to the curves over depth."""
        if not self._live:
            return
        self._live["blocks"].append(dict(row))
        curves = {
            f"depth/{key}": value for key, value in row.items() if key.startswith("relative")
        }
        self._live["run"].log({"block": row["block"], **curves})

    def finish(self, record: Record) -> None:
        """Writes scalars and tables and closes the W&B run."""
        import wandb

        if not self._live:
            return
        run, layers, blocks = (self._live.pop(key) for key in ("run", "layers", "blocks"))
        final: dict[str, Any] = {}
        for name, rows in (("layers", layers), ("blocks", blocks)):
            if rows:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                data: list[Any] = [[row.get(column) for column in columns] for row in rows]
                final[name] = wandb.Table(columns=columns, data=data)
        relative = [row["total_error"] / row["signal"] for row in layers if row.get("signal")]
        if relative:
            final["relative_total_error"] = wandb.Histogram(relative, num_bins=HISTOGRAM_BINS)
        if final:
            run.log(final)
        scalars = {
            **record.metrics,
            **{f"seconds/{key}": value for key, value in record.seconds.items()},
            **{f"flops/{key}": value for key, value in record.flops.items()},
            "bits_per_weight": record.bits_per_weight,
            "peak_memory": record.peak_memory,
            "peak_device_memory": record.peak_device_memory,
            "checkpoint_bytes": record.checkpoint_bytes,
            "run": record.run,
            "status": record.status,
            "started": record.started,
        }
        run.summary.update(scalars)
        run.finish(exit_code=0 if record.status == "done" else 1)
