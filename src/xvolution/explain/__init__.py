"""What the attention in a trained network does, in one command: what is lost without it, where it says what, how far it sees."""

from xvolution.explain.run import Explanation, explain

__all__ = ["Explanation", "explain"]
