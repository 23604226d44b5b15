"""The tasks detect and segment: training, evaluating and deploying detectors, and drawing their detections."""
