"""What all figures share: which runs belong together, one style, panels, captions."""
