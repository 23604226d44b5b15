"""What the tasks detect and segment do: training, judging and deploying detectors, and drawing what they find."""
