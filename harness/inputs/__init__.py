"""What goes in: checkpoints, texts and token windows."""
