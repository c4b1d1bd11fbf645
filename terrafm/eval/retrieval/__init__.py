"""Label-free scores: is a place found again, by another sensor or at another date?"""
