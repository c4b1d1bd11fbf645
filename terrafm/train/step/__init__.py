"""One training step: student, teacher, optimizer, ZeRO; knows nothing of Ray."""
