"""The tables and pictures of `docs/results.md`, from the records under `results/`."""
