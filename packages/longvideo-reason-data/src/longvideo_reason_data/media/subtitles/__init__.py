"""Subtitles of a video: files next to it and text tracks inside it."""
