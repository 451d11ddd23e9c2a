"""What planescope survives: harnesses behind the figures of docs/reliability.md."""
