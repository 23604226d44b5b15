"""Networks of libraries beside timm and torchvision: converted, re-parameterized, compared; what stays, and why."""
