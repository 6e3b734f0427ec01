"""`meshmoe join` with everything that can be wrong: one clear line, the right exit code, no traceback, and soon.

What is wrong with a request to the API is in tests/api/test_errors.py.
"""
