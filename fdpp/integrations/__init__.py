"""fdpp inside other libraries: one package for each, over :mod:`fdpp.ops` alone."""
