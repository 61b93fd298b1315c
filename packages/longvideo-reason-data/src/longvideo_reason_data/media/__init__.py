"""Files from outside: videos with exact frames and times, subtitles, scenes and segments."""
