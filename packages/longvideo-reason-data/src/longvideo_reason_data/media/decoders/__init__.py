"""Decoders: they turn the frames of a video file into pixels. One is chosen by name and never replaced by another."""
