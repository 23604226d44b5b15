"""Support for other libraries' functions to build, train and export converted networks; one file for each library.

A file imports its library, so that it is imported only where that library is used.
"""
