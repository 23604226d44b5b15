"""Converting a network: what to put in, where, the norms that follow, and the proof that nothing changed."""
