"""What is compared: configurations, the suites made of them, files of a user's own, and other packages' caches."""
