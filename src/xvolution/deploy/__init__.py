"""What a trained network becomes: the exact deployed form, the nearest static one, and files for other runtimes."""

from xvolution.deploy.reparameterize import ReparameterizationError, layouts_of, reparameterize

__all__ = ["ReparameterizationError", "layouts_of", "reparameterize"]
