"""Measuring ways of drawing against the plain model: what they cost, and how near their pictures come."""
