"""Decoders: what turns the frames of a video file into pixels. One is chosen by name, never another in its place."""
