"""The timeline world: seeded stories rendered to real video files, with questions whose answers are known exactly."""
