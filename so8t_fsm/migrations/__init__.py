"""The schema's history, applied by :func:`so8t_fsm.schema.migrate`."""
