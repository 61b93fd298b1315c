"""The `longrl` command: the whole pipeline on one machine, its stages one by one, and the report.

Connects the packages and contains no algorithm of its own. Importing it is cheap; every command imports what it needs
when it runs.
"""
