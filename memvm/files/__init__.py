"""A guest's files: a tree of views, an in-memory layer, and what is open. Nothing here knows guest memory."""
