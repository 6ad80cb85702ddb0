"""The user's request. Bytes in, bytes out; nothing else may delay it."""
