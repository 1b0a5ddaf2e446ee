"""Column loops and range search on a GPU: kernels in Triton, each equal to a twin in plain torch."""
