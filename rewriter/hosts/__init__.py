"""Hosts: the kinds of graph that graft opens. Each has a READ table into the alphabet and writes back from it."""
