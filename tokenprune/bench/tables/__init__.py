"""Results as tables and plots: cells, Markdown, the Pareto front."""
