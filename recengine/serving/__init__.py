"""Everything around a running tritonserver."""
