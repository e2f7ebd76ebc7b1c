"""Limits of splits that hold out the future, the same where ingest holds out rows and where training validates."""

MIN_USERS_ON_BOTH_SIDES = 50
"""Fewer users with positives before and after one time make the split per user."""

MIN_KNOWN_SHARE = 1 / 3
"""So does a future of which less is of users who were there before: of others nothing but popularity can be measured."""

MAX_SESSION_SHARE = 0.5
"""A newest session with more of its user's positives stays, as too little would be left to predict it from."""
