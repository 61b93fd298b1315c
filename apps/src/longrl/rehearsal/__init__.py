"""`longrl rehearse`: a recipe's step on as many ranks as wanted, without a GPU and without weights."""
