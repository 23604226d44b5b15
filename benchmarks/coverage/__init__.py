"""Every architecture of timm and torchvision: converted, differentiated, re-parameterized, compared at each step."""
