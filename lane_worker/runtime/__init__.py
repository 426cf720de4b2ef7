"""What every worker does, whichever models it serves: claim, run, settle, renew, report. Never imports torch."""
