"""Drawing, timing and comparing pictures, on one process or several, into a result file that can be resumed."""
