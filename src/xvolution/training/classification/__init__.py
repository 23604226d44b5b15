"""The task classify: training, evaluating and deploying image classifiers."""
