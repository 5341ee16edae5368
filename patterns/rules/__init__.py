"""Rules, one per file: when a site is rewritten and to which call."""
