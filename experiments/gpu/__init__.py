"""A queue of experiments, each sized for a few minutes of one GPU; README.md says what each asks and which are done."""
