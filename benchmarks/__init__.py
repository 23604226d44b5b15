"""What measures the library itself. Run from a checkout; no part of the installed package."""
