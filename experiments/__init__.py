"""What X-volution is worth on data: trainings with their settings. Run from a checkout; no part of the installed package."""
