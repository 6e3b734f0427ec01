"""The vocabulary: ids, errors, units, configuration schema. No I/O, and no import of our other packages."""
