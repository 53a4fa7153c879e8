"""Stress for a directory: a load that is killed, a ledger kept outside, a judge; and a bank."""
