"""What is computed by one operator of torch's dispatcher instead of many; imports torch alone.

``gate`` is what a device computes in its own way, ``branch`` the algebra around it that is the same on all of them, and
``operator`` registers both with ``torch.library``.
"""
