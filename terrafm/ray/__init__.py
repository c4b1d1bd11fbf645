"""Ray: how it is joined or started, work on parts of a plan, processes that stand by."""
