"""Behind tools/report.py: what the paper says, what was measured, and the files made of both."""
