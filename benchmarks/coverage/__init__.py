"""Every architecture of timm and torchvision: converted, differentiated, re-parameterized, and compared at each step."""
