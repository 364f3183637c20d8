"""Guest RAM: page metadata, deferred pages, write guards, and the two fault engines."""
