"""Tables: frames in, text out."""
