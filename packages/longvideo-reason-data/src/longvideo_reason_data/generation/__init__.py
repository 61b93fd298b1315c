"""From one video to drafts of questions: its segments, captions, questions and reasoning."""
