"""Two streams through the model, block by block: what a linear reads and what its error becomes."""
