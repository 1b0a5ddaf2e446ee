"""What a figure returns, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analysis.plotting.style import styled

# No clock and no version in a file: the same frames give the same bytes.
METADATA = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Drawing:
    """A figure, and the caption that goes beside it: what is shown, n, seeds."""

    figure: Figure
    caption: str

    @styled
    def write(self, stem: Path) -> list[Path]:
        """Writes ``stem`` as .pdf, .png and the caption as .txt; the files."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = []
        self.figure.draw_without_rendering()  # the layout is the same in all formats: find it once
        self.figure.set_layout_engine("none")
        for kind, metadata in METADATA.items():
            files.append(stem.with_name(f"{stem.name}.{kind}"))
            self.figure.savefig(files[-1], metadata=metadata)
        files.append(stem.with_name(f"{stem.name}.txt"))
        files[-1].write_text(self.caption + "\n", encoding="utf-8")
        return files
