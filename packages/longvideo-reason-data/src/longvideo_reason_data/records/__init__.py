"""Question records: their fields, the grammar of answers, splits, and the dataset folder that holds them."""
