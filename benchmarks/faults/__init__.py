"""The fault table: what callers see while parts of a deployment are killed, stopped, overloaded or broken."""
