"""OpenAI's responses API: `/v1/responses`."""
