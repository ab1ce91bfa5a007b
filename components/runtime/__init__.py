"""What every step and every rank runs in: context, events, redaction, the launcher of local ranks."""
