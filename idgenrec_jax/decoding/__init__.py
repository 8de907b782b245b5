"""The trie of valid IDs and the searches over it."""
