"""Fine-tuning: the whole encoder is trained with a head, on the training split."""
