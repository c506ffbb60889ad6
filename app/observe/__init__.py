"""What a running Holdfast shows of itself: the account, metrics, events, traces."""
