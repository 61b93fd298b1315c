"""Asking a language model behind an OpenAI-compatible server: paid once, within a limit, remembered."""
