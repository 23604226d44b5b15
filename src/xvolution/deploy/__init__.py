"""Deployment of a trained network: the exact deployed form, the closest static form, and files for other runtimes."""
