"""What every Warmlane process agrees on: requests, records, subjects, settings.

Standard library and msgspec only; no clock, no I/O beyond reading the packaged settings file, no logging.
"""
