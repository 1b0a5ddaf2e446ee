"""Tables: a file each, with ``build(frames) -> Table | None``; None where there is nothing to show."""
