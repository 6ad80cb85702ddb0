"""The candidate's turn: answering, comparing, deciding. May be slow, may crash, may be absent."""
