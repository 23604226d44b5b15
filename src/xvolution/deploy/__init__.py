"""What a trained network becomes: the exact deployed form, the nearest static one, and files for other runtimes."""
