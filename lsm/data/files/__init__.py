"""Files of one's own as a source: tables, arrays, records, lines of text."""

from lsm.data.files.source import Files

__all__ = ["Files"]
