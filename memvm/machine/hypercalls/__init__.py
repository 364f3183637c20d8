"""The calls that a guest may make: one file a family, declared once in the table of table.py."""
