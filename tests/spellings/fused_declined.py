"""Fused nodes whose meaning is another one, or that write in place: declined, each for its own reason."""
FUSED_DECLINED = ()
