"""Files and folders that somebody else made: opened without leaving them, bounded, and shown safely."""
