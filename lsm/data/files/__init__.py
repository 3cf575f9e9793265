"""Files of one's own as a source.

places    a path: its files, by split
parts     what a file is read as: rows that lie together, columns as they are stored
  tables  CSV, JSON lines, Parquet, Arrow
  stores  .npz, HDF5
  records TFRecord (its checksums: crc32c), lines of text
columns   what is delivered, of what is stored: shapes, 32 bits, labels, pictures
source    `Files`, which a config holds, and the dataset that it opens
"""

from lsm.data.files.source import Files

__all__ = ["Files"]
