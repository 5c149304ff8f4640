"""Plain helpers without domain words: units, files, codecs, processes."""
