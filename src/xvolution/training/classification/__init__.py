"""What the task classify does: training, judging and deploying image classifiers."""
