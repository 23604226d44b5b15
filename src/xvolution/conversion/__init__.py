"""Converting a network: the operators, their places, the norms that follow, and the check that outputs stay the same."""
