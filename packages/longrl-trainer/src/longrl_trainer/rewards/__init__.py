"""What makes a response good: one module per reward, found through the entry points `longrl_trainer.rewards`."""
