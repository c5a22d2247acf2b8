"""What must stay on this machine: found by form, by name, by the user's own rules, or because it came from something that was private."""
