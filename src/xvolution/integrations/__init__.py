"""Other libraries' own ways of building, training and exporting networks, for converted networks; one file a library.

A file imports its library, so that it is imported only where that library is used.
"""
