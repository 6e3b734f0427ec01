"""Messages and tensor frames: the one place that knows the bytes on the wire."""
