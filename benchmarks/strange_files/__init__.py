"""Files that are damaged or crafted, of every kind that the library reads."""
