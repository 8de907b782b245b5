"""Reports for people: plain text, JSON and self-contained pages."""
