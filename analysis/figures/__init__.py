"""Figures: a file each, with ``draw(frames) -> Drawing | None``; None where there is nothing to show."""
