"""Where results live: the ledger of finished units, write-once artifacts, tables, and the lock.

A store is a folder shared by runs. One run at a time writes to it; anyone may read.
"""
