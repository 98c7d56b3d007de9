"""Bridges to other libraries: each module needs its library and is not imported by mpfast itself."""
