"""The leaderboard: published and measured figures as data, and what may be said by comparing them."""
