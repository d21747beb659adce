"""Catalogues: the row, the readers, the check."""
