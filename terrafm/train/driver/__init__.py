"""The process of the command: checks a run, starts and watches its workers, validates."""
