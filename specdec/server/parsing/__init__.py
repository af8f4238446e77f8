"""From an answer's text to its parts: reasoning, text and tool calls, while the text arrives."""
