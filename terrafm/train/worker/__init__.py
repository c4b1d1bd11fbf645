"""A training worker under Ray Train: the loop, and what it tells the driver."""
