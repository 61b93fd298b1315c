"""From one video to question drafts: its segments, captions, questions and reasoning."""
