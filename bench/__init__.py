"""What extproc costs, measured beside Envoy alone in one run on one machine."""
