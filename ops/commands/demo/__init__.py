"""`warmlane demo`: the alternation, and the story of a fallback."""
